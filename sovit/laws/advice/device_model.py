"""What a shape would take on a device, from shapes that were measured there: a guide to what to measure next.

    ms = ms_0 + ms_layer * depth + ms_projections * P + ms_mlp * M + ms_attention * A,   none of them negative

P, M and A are the GFLOPs of one image; everything is at one batch size and precision. The fit is by relative error.
Tiles and caches are not in it, so it is never advice in itself: its error on shapes it did not see is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from pydantic import ConfigDict

from sovit.config import ViTConfig
from sovit.cost import macs
from sovit.errors import ConfigError
from sovit.jsonio import STRICT
from sovit.laws.solvers.nonnegative import nonnegative
from sovit.laws.solvers.powers import Floats

LEAST_SHAPES: Final = 3  # with fewer there is nothing to leave out
_GMAC: Final = 1e9


@dataclass(frozen=True, kw_only=True)
class DeviceModel:
    """The milliseconds of a fixed part, of a layer, and of a GFLOP of projections, MLP and attention.

    `mean_error` and `max_error` are of |prediction / measurement - 1|, each shape predicted from the others alone.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    fixed: float
    layer: float
    projections: float
    mlp: float
    attention: float
    shapes: int
    mean_error: float
    max_error: float

    def predict(self, configs: Sequence[ViTConfig]) -> Floats:
        """Milliseconds of a batch, [P]."""
        per_J = np.array([self.fixed, self.layer, self.projections, self.mlp, self.attention])
        return np.asarray(_features(configs) @ per_J)


def fit_device(configs: Sequence[ViTConfig], latency_ms: Sequence[float]) -> DeviceModel:
    """Fit the model to shapes of one batch size. Raises `ConfigError` for fewer than `LEAST_SHAPES`."""
    if len(configs) != len(latency_ms) or len(configs) < LEAST_SHAPES:
        raise ConfigError(f"a device model takes the latencies of {LEAST_SHAPES} shapes or more.")
    relative_PJ = _features(configs) / np.asarray(latency_ms, np.float64)[:, None]
    # All shapes, and then all but each one: problems of five unknowns, solved together.
    taken_BP = np.concatenate([np.ones((1, len(relative_PJ))), 1 - np.eye(len(relative_PJ))])
    gram_BJJ = np.einsum("bp,pi,pj->bij", taken_BP, relative_PJ, relative_PJ)
    moment_BJ = taken_BP @ relative_PJ
    per_BJ, _ = nonnegative(gram_BJJ, moment_BJ, np.ones(moment_BJ.shape, np.bool_))
    error_P = np.abs((relative_PJ * per_BJ[1:]).sum(axis=1) - 1)
    fixed, layer, projections, mlp, attention = per_BJ[0].tolist()
    return DeviceModel(
        fixed=fixed, layer=layer, projections=projections, mlp=mlp, attention=attention, shapes=len(configs),
        mean_error=float(error_P.mean()), max_error=float(error_P.max()),
    )  # fmt: skip


def _features(configs: Sequence[ViTConfig]) -> Floats:
    """1, depth, and the GFLOPs of projections, MLP and attention [P, 5]; the last three are all of a model's."""
    return np.array([_of(config) for config in configs], np.float64)


def _of(config: ViTConfig) -> tuple[float, ...]:
    mlp = config.depth * config.num_tokens * 2 * config.width * config.mlp_dim
    attention = config.depth * 2 * config.num_tokens**2 * config.width
    parts = (macs(config) - mlp - attention, mlp, attention)
    return (1.0, config.depth, *(2 * part / _GMAC for part in parts))

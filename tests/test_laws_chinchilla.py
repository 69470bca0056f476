"""The same solvers on the public points of Hoffmann et al. 2022, against what their replication found."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sovit.errors import ConfigError
from sovit.laws.chinchilla import fit_tokens

Floats = NDArray[np.float64]
CSV = Path(__file__).resolve().parents[2] / "shared" / "data" / "chinchilla" / "svg_extracted_data.csv"


def test_the_replications_optimum() -> None:
    """Besiroglu et al. 2024 (arXiv 2404.10102) and the code they published: the sum of the Huber losses."""
    if not CSV.is_file():
        pytest.skip("the points read off Hoffmann's figure are not in shared/data/chinchilla")
    with CSV.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    size, flops, loss = (
        np.array([float(row[name]) for row in rows]) for name in ("Model Size", "Training FLOP", "loss")
    )
    kept = np.argsort(loss)[:-5]
    law = fit_tokens(size[kept], (flops / (6 * size))[kept], loss[kept], starts=50)
    assert law.convergence.objective == pytest.approx(0.0010182740, abs=5e-11)
    assert law.alpha == pytest.approx(0.3473, abs=5e-5)
    assert law.beta == pytest.approx(0.3672, abs=5e-5)
    assert math.log(law.E) == pytest.approx(0.5973, abs=5e-5)
    assert law.convergence.reached == 50
    assert law.convergence.gradient_norm < 1e-9
    assert law.predict(size[kept], (flops / (6 * size))[kept]) == pytest.approx(loss[kept], rel=0.1)


@pytest.mark.parametrize("method", ["huber", "relative"])
def test_known_parameters_are_found(method: str) -> None:
    size, tokens = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e9, 1e12, 6)))
    loss = 1.8 + 480 * size**-0.35 + 2100 * tokens**-0.37
    law = fit_tokens(size, tokens, loss, method=method, starts=10)  # type: ignore[arg-type]
    assert [law.E, law.A, law.alpha, law.B, law.beta] == pytest.approx([1.8, 480, 0.35, 2100, 0.37], rel=1e-6)


def test_points_that_are_none() -> None:
    good = np.array([1.0, 2, 3, 4, 5, 6])
    with pytest.raises(ConfigError, match="must all be numbers above 0"):
        fit_tokens(good, good, -good)
    with pytest.raises(ConfigError, match="There are 5 points for 5 parameters"):
        fit_tokens(good[:5], good[:5], good[:5])

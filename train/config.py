"""Everything that decides a training run, with its defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, Final, Literal

from pydantic import ConfigDict

from sovit.config import Pool, PositionEmbedding
from sovit.errors import ConfigError
from sovit.jsonio import STRICT
from train.augment.randaugment import MAX_MAGNITUDE
from train.objective import Objective
from train.optim.build import OptimizerName
from train.probing import Probe
from train.schedule import ScheduleKind

Crop = Literal["squash", "pad", "inception"]
TrainPrecision = Literal["fp32", "bf16"]
Parallel = Literal["ddp", "fsdp"]

# Fields that may differ when a run is resumed: none of them is part of what is computed.
FREE_TO_CHANGE: Final = frozenset(
    {"workers", "threads", "log_every", "save_every", "keep_states", "eval_every", "compile", "cuda_graphs",
     "checkpoint_activations", "parallel", "accumulate", "keep_decoded", "most_bad_images", "probes", "tensorboard"}
)  # fmt: skip
# What `init` is in a recipe for fine-tuning until the user says where their checkpoint is.
UNSET_CHECKPOINT: Final = "CHECKPOINT"
SHAPE: Final = ("width", "depth", "mlp_dim", "num_heads", "patch_size")
_AT_LEAST_ONE: Final = ("batch_size", "accumulate", "log_every", "keep_states", "timescale")
_POSITIVE: Final = ("learning_rate", "clip_norm", "distill_temperature")
_NOT_NEGATIVE: Final = (
    "threads", "workers", "steps", "epochs", "warmup_steps", "warmup_fraction", "cooldown_steps", "weight_decay",
    "head_decay_factor", "rotate_degrees", "shift_fraction", "save_every", "eval_every", "most_bad_images",
    "randaugment_count", "randaugment_magnitude", "mixup", "cutmix", "pad_pixels", "stochastic_depth",
)  # fmt: skip
_FRACTIONS: Final = ("label_smoothing", "scale_fraction", "erase", "ema", "warmup_fraction", "momentum")
# On either side of zero. What is beyond has no meaning, or no finite numbers.
_AT_MOST: Final[dict[str, float]] = {
    "head_bias": 100, "stochastic_depth": 0.9, "distill_temperature": 1_000, "mixup": 1_000, "cutmix": 1_000,
    "rotate_degrees": 180, "shift_fraction": 1, "randaugment_count": 16, "randaugment_magnitude": MAX_MAGNITUDE,
    "threads": 1_024, "workers": 256,
}  # fmt: skip
_RULES: Final[tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...]] = (
    (_AT_LEAST_ONE, lambda value: value >= 1, "be at least 1"),
    (_POSITIVE, lambda value: value > 0, "be above 0"),
    (_NOT_NEGATIVE, lambda value: value >= 0, "not be negative"),
    (_FRACTIONS, lambda value: 0 <= value < 1, "be at least 0 and below 1"),
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. A step is an optimiser's step; `batch_size` counts the images of all processes together.

    The model is given by its shape, as in `ViTConfig`, or by `init`, a checkpoint folder whose weights the run starts
    from; the head is made anew, with zero weights and the bias `head_bias`. A head of a new shape has zero weights too.

    `mup_depth` is the width, depth and mlp_dim of the model that `learning_rate` is for: others get theirs from it,
    part by part. It is AdamW's.

    The length is `steps`, or `epochs` over the training images. `crop` says how an image is brought to `image_size`:
    `squash` resizes it, `pad` also shifts it within `pad_pixels`, `inception` cuts out a random part. `keep_decoded`
    decodes every image once and keeps the pixels in memory, for small images.

    `mixup` and `cutmix` are alphas of a Beta distribution, `erase` is a probability, `ema` the decay of averaged
    weights (0 for none; where there are some, they are evaluated and saved). `layer_decay` multiplies the learning
    rate once per layer from the head down. `weight_decay` is AdamW's.

    `teacher` is a checkpoint folder with the same classes to distil from, `distill_weight` its part of the loss.

    `compile` compiles the blocks, for all models; `cuda_graphs` is for small ones on one GPU, whose kernels would be
    launched one by one in more time than they take: the whole model is replayed at once.

    `accumulate` splits every process's part of a batch to save memory. `threads` 0 takes all cores. A state to resume
    from is saved every `save_every` steps and at the end, the last `keep_states` are kept; `eval_every` 0 evaluates at
    the end alone, and `probes` are fitted where there is an evaluation on the way.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    width: int | None = None
    depth: int | None = None
    mlp_dim: int | None = None
    num_heads: int | None = None
    patch_size: int | None = None
    image_size: tuple[int, int]
    pool: Pool = "map"
    position_embedding: PositionEmbedding = "learn"
    init: str = ""
    head_bias: float = 0.0
    mup_depth: tuple[int, int, int] | None = None

    objective: Objective = "softmax"
    label_smoothing: float = 0.0
    teacher: str = ""
    distill_weight: float = 0.5
    distill_temperature: float = 1.0

    steps: int = 0
    epochs: float = 0.0
    batch_size: int
    accumulate: int = 1
    optimizer: OptimizerName = "adamw"
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.99)
    momentum: float = 0.9
    weight_decay: float = 0.0
    head_decay_factor: float = 1.0
    layer_decay: float = 1.0
    clip_norm: float = 1.0
    ema: float = 0.0
    schedule: ScheduleKind = "cosine"
    warmup_steps: int = 0
    warmup_fraction: float = 0.0
    cooldown_steps: int = 0
    timescale: int = 10_000
    stochastic_depth: float = 0.0

    crop: Crop = "squash"
    pad_pixels: int = 4
    crop_area: tuple[float, float] = (0.05, 1.0)
    flip: bool = False
    randaugment_count: int = 0
    randaugment_magnitude: int = 10
    rotate_degrees: float = 0.0
    shift_fraction: float = 0.0
    scale_fraction: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    erase: float = 0.0
    keep_decoded: bool = False
    most_bad_images: int = 100

    precision: TrainPrecision = "fp32"
    compile: bool = False
    cuda_graphs: bool = False
    checkpoint_activations: bool = False
    parallel: Parallel = "ddp"
    seed: int = 0
    threads: int = 0
    workers: int = 1

    log_every: int = 50
    save_every: int = 1_000
    keep_states: int = 2
    eval_every: int = 0
    probes: tuple[Probe, ...] = ()
    tensorboard: bool = False

    def __post_init__(self) -> None:
        self._check_numbers()
        missing = [name for name in SHAPE if getattr(self, name) is None]
        if not self.init and missing:
            raise ConfigError(
                f"the model lacks {', '.join(missing)}: set what is missing, or init=CHECKPOINT to start from one."
            )
        if self.init and len(missing) < len(SHAPE):
            given = ", ".join(name for name in SHAPE if name not in missing)
            raise ConfigError(f"{given} and init are both set: a run that starts from a checkpoint takes its shape.")
        if self.keep_decoded and self.crop == "inception":
            raise ConfigError("keep_decoded and crop=inception are both set: a part is cut out of the whole image.")
        if len(set(self.probes)) < len(self.probes):
            raise ConfigError(f"probes are {', '.join(self.probes)}: each can be fitted once.")
        if self.mup_depth and (self.init or self.optimizer != "adamw" or min(self.mup_depth) < 1):
            raise ConfigError("mup_depth is three sizes of 1 or more, for a new model that AdamW trains.")
        if self.cuda_graphs and (self.accumulate > 1 or self.checkpoint_activations or self.parallel == "fsdp"):
            raise ConfigError(
                "cuda_graphs is for one whole batch on one GPU: no accumulate, activations or fsdp with it."
            )
        if not 0 <= self.distill_weight <= 1:
            raise ConfigError(f"distill_weight is {self.distill_weight}, it must lie in 0..1.")
        if bool(self.steps) == bool(self.epochs):
            raise ConfigError("the length is either steps or epochs: set one of them, and the other to 0.")
        if self.warmup_steps and self.warmup_fraction:
            raise ConfigError("warmup_steps and warmup_fraction are both set: set one of them.")
        if self.cooldown_steps and self.schedule != "rsqrt":
            raise ConfigError(f"cooldown_steps means nothing to the schedule {self.schedule}: it belongs to rsqrt.")
        if self.crop == "pad" and self.pad_pixels >= min(self.image_size):
            raise ConfigError(f"pad_pixels is {self.pad_pixels}, it must be less than the sides of {self.image_size}.")
        if (self.mixup or self.cutmix) and self.batch_size % (2 * self.accumulate):
            raise ConfigError(
                f"batch_size is {self.batch_size}, mixup and cutmix need a multiple of {2 * self.accumulate}: pairs."
            )

    def _check_numbers(self) -> None:
        for names, fits, words in _RULES:
            for name in names:
                if not fits(getattr(self, name)):
                    raise ConfigError(f"{name} is {getattr(self, name)}, it must {words}.")
        for name, most in _AT_MOST.items():
            if abs(getattr(self, name)) > most:
                raise ConfigError(f"{name} is {getattr(self, name)}, its size is at most {most:g}.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas are {self.betas}, both must be at least 0 and below 1.")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay is {self.layer_decay}, it must be above 0 and at most 1.")
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ConfigError(f"crop_area is {self.crop_area}, it must be two rising fractions above 0 and at most 1.")

    def length(self, images: int) -> int:
        """Optimiser steps of the run over so many training images."""
        return self.steps or max(1, round(self.epochs * images / self.batch_size))

    def warmup(self, steps: int) -> int:
        """Steps of warm-up in a run of so many."""
        return self.warmup_steps or round(self.warmup_fraction * steps)


FIELDS: Final = tuple(entry.name for entry in fields(TrainConfig))

"""What a model is, apart from its weights. Checkpoint and artifact both carry it."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import ConfigDict

from sovit.config import ViTConfig
from sovit.errors import ConfigError
from sovit.jsonio import STRICT
from sovit.preprocess import Preprocess

Score = Literal["softmax", "sigmoid"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Model, preprocessing, labels and the function that turns logits into scores."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    model: ViTConfig
    preprocess: Preprocess
    labels: tuple[str, ...] = ()
    score: Score = "softmax"

    def __post_init__(self) -> None:
        if self.preprocess.image_size != self.model.image_size:
            raise ConfigError(
                f"the preprocessing makes images of {self.preprocess.image_size}, "
                f"the model takes {self.model.image_size}."
            )
        if (self.preprocess.resize == "naflex") != self.model.naflex:
            raise ConfigError(
                f"the resize rule is {self.preprocess.resize!r}, and naflex is {self.model.naflex}: "
                "the rule 'naflex' and a NaFlex model go together."
            )
        if self.preprocess.patch_size not in (None, self.model.patch_size):
            raise ConfigError(
                f"the preprocessing cuts patches of {self.preprocess.patch_size} pixels, "
                f"the model takes {self.model.patch_size}."
            )
        if len(self.labels) != self.model.num_classes:
            raise ConfigError(f"{len(self.labels)} labels do not fit a head of {self.model.num_classes} classes.")

        for index, label in enumerate(self.labels):
            if not label.strip() or any(unicodedata.category(character) in ("Cc", "Cs") for character in label):
                raise ConfigError(f"the name of class {index} is empty or has control characters: {label!r}.")
        repeated = next((label for label, count in Counter(self.labels).items() if count > 1), None)
        if repeated is not None:
            raise ConfigError(f"two classes are called {repeated!r}; every class needs its own name (--labels FILE).")

    def at(self, image_size: tuple[int, int]) -> ModelSpec:
        """The same model for images of this one size (Y, X). A NaFlex model becomes one that squashes them."""
        preprocess = replace(self.preprocess, image_size=image_size)
        if preprocess.resize == "naflex":
            preprocess = replace(preprocess, resize="squash", patch_size=None, max_patches=None)
        return replace(self, model=replace(self.model, image_size=image_size, naflex=False), preprocess=preprocess)

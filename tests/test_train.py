from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from sovit.errors import ConfigError, SoViTError
from sovit.predict import Classification, Prediction, load_checkpoint
from train.augment.affine import random_affine
from train.build import first_model, spec_of
from train.data.dataset import Dataset
from train.data.load import load_dataset
from train.evaluate import ClassResult, evaluate_classifier
from train.loop import train
from train.optim.build import build_optimizer
from train.optim.groups import parameter_groups
from train.passes import Passes
from train.probing import evaluate_probe
from train.recipes import RECIPES
from train.samples import Batch
from train.settings import recipe
from train.signals import Interrupted
from train.step import Learner, TrainingDiverged
from train.watch import Clock
from train.world import World

SMALL = ["width=16", "depth=1", "mlp_dim=32", "num_heads=2", "steps=60", "warmup_steps=6", "batch_size=32"]

STILL = [f"{name}=0" for name in ("rotate_degrees", "shift_fraction", "scale_fraction")]
GOLDEN = [
    *SMALL,
    "steps=20",
    "warmup_steps=2",
    "learning_rate=0.02",
    "log_every=1",
    "ema=0.9",
    "stochastic_depth=0.1",
    "mixup=0.2",
    "clip_norm=1",
]


def quiet() -> Console:
    return Console(quiet=True)


def first(dataset: Dataset, count: int) -> Dataset:
    return Dataset(dataset.name, dataset.images[:count], dataset.targets[:count], dataset.classes)


def test_training_learns_and_leaves_a_checkpoint_and_a_log(tmp_path: Path) -> None:
    test_set = first(load_dataset("digits", "test"), 100)
    config = recipe("digits", [*SMALL, "steps=160", "learning_rate=0.01"])
    result = train(config, load_dataset("digits", "train"), test_set, tmp_path, console=quiet())
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "loss" in entry] == [50, 100, 150, 160]
    assert entries[-1] == {
        "step": 160,
        "data": "digits (test)",
        "top1": result.evaluation.top1,
        "top5": entries[-1]["top5"],
    }
    assert result.evaluation.top1 > 0.4  # chance is 0.1
    predictor = load_checkpoint(result.checkpoint)
    again = evaluate_classifier(predictor.classify, predictor.spec.labels, test_set)
    assert again.top1 == result.evaluation.top1


def test_training_is_reproducible(tmp_path: Path) -> None:
    train_set, test_set = (first(load_dataset("digits", "train"), 64), first(load_dataset("digits", "test"), 8))
    config = recipe("digits", [*SMALL, "steps=5", "warmup_steps=1"])
    losses = [train(config, train_set, test_set, tmp_path / str(run), console=quiet()).final_loss for run in range(2)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("objective", "steps", "bound"), [("softmax", 150, 0.05), ("sigmoid", 250, 0.25)])
def test_one_batch_can_be_learnt_by_heart(objective: str, steps: int, bound: float, tmp_path: Path) -> None:
    batch = first(load_dataset("digits", "train"), 32)
    by_heart = [*SMALL, f"steps={steps}", "learning_rate=0.01", "label_smoothing=0", "weight_decay=0", *STILL]
    config = recipe("digits", [*by_heart, f"objective={objective}"])
    result = train(config, batch, batch, tmp_path / "teacher", console=quiet())
    assert result.final_loss < bound
    assert result.evaluation.top1 == 1.0
    # A student that hears nothing but its teacher comes to say what it says.
    distil = [f"teacher={result.checkpoint}", "distill_weight=1", "distill_temperature=2"]
    student = train(
        recipe("digits", [*by_heart, f"objective={objective}", *distil, "seed=1"]),
        batch, batch, tmp_path / "student", console=quiet(),
    )  # fmt: skip
    assert student.final_loss < 2 * bound
    assert student.evaluation.top1 == 1.0


def test_the_first_twenty_losses_are_those_of_before(tmp_path: Path) -> None:
    """`golden/loss_curve.json` was written by this very run: data, model, loss and update, all at once."""
    train_set, test_set = load_dataset("digits", "train"), first(load_dataset("digits", "test"), 8)
    train(recipe("digits", GOLDEN), train_set, test_set, tmp_path, console=quiet())
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    found = [entry["loss"] for entry in entries if "loss" in entry]
    wanted = json.loads((Path(__file__).parent / "golden" / "loss_curve.json").read_text())
    assert len(wanted) == 20
    np.testing.assert_allclose(found, wanted, rtol=1e-3)  # sums are in another order on another processor


def test_probes_and_tensorboard_see_what_the_log_says(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    train_set, test_set = first(load_dataset("digits", "train"), 400), first(load_dataset("digits", "test"), 100)
    config = recipe("digits", [*SMALL, "eval_every=40", "log_every=20", "probes=fewshot,knn", "tensorboard=true"])
    result = train(config, train_set, test_set, tmp_path, console=quiet())
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(entry["step"], entry["probe"]) for entry in entries if "probe" in entry] == [
        (40, "fewshot"), (40, "knn"), (60, "fewshot"), (60, "knn"),
    ]  # fmt: skip
    predictor = load_checkpoint(result.checkpoint)
    for entry in entries[-2:]:
        again = evaluate_probe(entry["probe"], predictor.embed, train_set, test_set).scores
        assert {name: entry[name] for name in again} == pytest.approx(again, abs=0.011)  # an image may change sides
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(entry["step"], pytest.approx(entry["loss"])) for entry in entries if "loss" in entry]
    assert [event.step for event in events.Scalars("test/top1")] == [40, 60]
    assert [event.step for event in events.Scalars("knn/top-1")] == [40, 60]


def test_a_signal_breaks_a_pass_off() -> None:
    config = recipe("digits", SMALL)
    spec = spec_of(config, tuple("0123456789"))
    passes = Passes(
        first_model(config, spec), config, spec.preprocess, World(0, 1, torch.device("cpu")), stop=lambda: True
    )
    with pytest.raises(Interrupted):
        passes.rows(load_dataset("digits", "test"), lambda output: output.pre_logits)
    assert passes.model.training


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    batch = first(load_dataset("digits", "train"), 32)
    with pytest.raises(TrainingDiverged, match=r"at step \d+ \(.*blocks\.0.*\); try a lower learning_rate"):
        train(
            recipe("digits", [*SMALL, "learning_rate=1e30", "warmup_steps=0"]), batch, batch, tmp_path, console=quiet()
        )
    assert not (tmp_path / "checkpoint").exists()


def test_a_gradient_that_is_not_finite_is_named_and_changes_nothing() -> None:
    config = recipe("digits", [*SMALL, *STILL, "depth=3"])
    spec = spec_of(config, tuple("0123456789"))
    vit = first_model(config, spec).train()
    bad = vit.blocks[1].mlp.fc1.weight  # type: ignore[union-attr]
    bad.register_hook(lambda gradient: gradient * float("nan"))  # type: ignore[operator]
    groups = parameter_groups(vit, weight_decay=0.1, layer_decay=1, head_decay_factor=1)
    optimizer = build_optimizer(groups, name="adamw", learning_rate=1e-3, betas=(0.9, 0.99), momentum=0.9)
    world = World(0, 1, torch.device("cpu"))
    learner = Learner(config, vit, vit, None, optimizer, spec.preprocess, 10, world)
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    images = torch.randint(0, 256, (32, 8, 8, 3), dtype=torch.uint8)
    with pytest.raises(TrainingDiverged, match=r"at step 5 \(gradient of blocks\.1\.mlp\.fc1\.weight\)"):
        learner.step(Batch(images, torch.arange(32) % 10, {}), 4, 1e-3, Clock())
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())


def test_a_finished_run_says_again_what_it_found(tmp_path: Path) -> None:
    train_set, test_set = first(load_dataset("digits", "train"), 64), first(load_dataset("digits", "test"), 20)
    config = recipe("digits", [*SMALL, "steps=4", "warmup_steps=1", "log_every=2", "probes=knn,fewshot"])
    once = train(config, train_set, test_set, tmp_path, console=quiet())
    log = (tmp_path / "log.jsonl").read_text()
    again = train(config, train_set, test_set, tmp_path, console=quiet())
    assert (again.final_loss, again.seconds, again.evaluation.top1) == (
        once.final_loss, once.seconds, once.evaluation.top1,
    )  # fmt: skip
    assert (tmp_path / "log.jsonl").read_text() == log
    (tmp_path / "log.jsonl").write_text("".join(log.splitlines(keepends=True)[:-1]))  # killed after the first probe
    train(config, train_set, test_set, tmp_path, console=quiet())
    assert (tmp_path / "log.jsonl").read_text() == log


@pytest.mark.parametrize("settings", [["width=15"], ["teacher=nowhere"], ["warmup_steps=99"]])
def test_a_restart_that_is_refused_forgets_nothing(settings: list[str], tmp_path: Path) -> None:
    batch = first(load_dataset("digits", "train"), 32)
    short = [*SMALL, "steps=4", "warmup_steps=1"]
    train(recipe("digits", short), batch, batch, tmp_path, console=quiet())
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    state = tmp_path / "state" / "step-000000004"
    with pytest.raises(SoViTError):
        train(recipe("digits", [*short, *settings]), batch, batch, tmp_path, console=quiet(), restart=True)
    for branch, message in ((state, "that --restart forgets"), (tmp_path / "none", "is no state")):
        with pytest.raises(ConfigError, match=message):
            train(recipe("digits", short), batch, batch, tmp_path, console=quiet(), restart=True, branch=branch)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


def test_what_is_not_ours_is_not_forgotten(tmp_path: Path) -> None:
    batch = first(load_dataset("digits", "train"), 32)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "theirs").write_text("precious")
    with pytest.raises(ConfigError, match="no run of ours"):
        train(recipe("digits", SMALL), batch, batch, tmp_path, console=quiet(), restart=True)
    assert (tmp_path / "state" / "theirs").read_text() == "precious"
    with pytest.raises(ConfigError, match="theirs is a file: --out is the folder"):
        train(recipe("digits", SMALL), batch, batch, tmp_path / "state" / "theirs", console=quiet())


def test_a_probe_goes_on_without_an_image_that_is_corrupt(tmp_path: Path) -> None:
    whole = load_dataset("digits", "train")
    chosen = np.concatenate([np.flatnonzero(whole.targets == label)[:5] for label in range(10)])
    images = [whole.images[index] for index in chosen.tolist()]
    images[0] = b"no image"
    train_set = Dataset("few", images, whole.targets[chosen], whole.classes)
    config = recipe("digits", [*SMALL, "steps=2", "warmup_steps=1", "probes=fewshot"])
    train(config, train_set, first(load_dataset("digits", "test"), 20), tmp_path, console=quiet())
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert next(entry for entry in entries if "probe" in entry).keys() >= {"1-shot"}
    assert [entry["left_out"] for entry in entries if "left_out" in entry] == ["image 0 of few"]


def test_too_few_images_are_named(tmp_path: Path) -> None:
    few = first(load_dataset("digits", "train"), 8)
    with pytest.raises(ConfigError, match="8 images, less than one batch of 32"):
        train(recipe("digits", SMALL), few, few, tmp_path, console=quiet())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["step=3"], "no field is called 'step'; did you mean steps"),
        (["zzz=3"], "known are width"),
        (["steps"], "lacks its value"),
        (["steps=many"], "steps: "),
        (["steps=0"], "either steps or epochs"),
        (["steps=-1"], "steps is -1"),
        (["learning_rate=-1"], "learning_rate is -1"),
        (["learning_rate=nan"], "learning_rate"),
        (["num_heads=7"], "does not divide"),
        (["crop=inception"], "keep_decoded and crop=inception"),
        (["distill_weight=1.5"], "distill_weight is 1.5"),
        (["pool=max"], "pool"),
    ],
)
def test_wrong_settings_are_named(settings: list[str], message: str, tmp_path: Path) -> None:
    batch = first(load_dataset("digits", "train"), 64)
    with pytest.raises(ConfigError, match=message):
        train(recipe("digits", settings), batch, batch, tmp_path, console=quiet())


def test_every_recipe_says_how_to_run_it_and_is_as_long_as_its_source() -> None:
    for name, make in RECIPES.items():
        assert f"sovit train {name} --data" in str(make.__doc__)
        assert recipe(name, ["seed=3"]) == replace(make(), seed=3)
    imagenet = 1_281_167
    assert recipe("imagenet1k-s16", []).length(imagenet) == 112_603  # 90 epochs at 1,024 images
    assert recipe("sovit-400m-finetune-518", []).length(imagenet) * 512 / imagenet == pytest.approx(20, abs=0.1)


def test_an_unknown_recipe_is_named() -> None:
    with pytest.raises(ConfigError, match="no recipe is called 'mnist'; known are digits"):
        recipe("mnist", [])
    with pytest.raises(ConfigError, match="no recipe is called 'cifar-10'; did you mean cifar10"):
        recipe("cifar-10", [])


def test_augmentation_by_nothing_changes_nothing_and_a_shift_shifts() -> None:
    image = torch.rand(3, 3, 8, 8)
    drawn = {"seed": 0, "step": 3, "first": 0}
    same = random_affine(image, degrees=0, shift=0, scale=0, **drawn)
    torch.testing.assert_close(same, image, atol=1e-5, rtol=0)
    moved = random_affine(image, degrees=10, shift=0.1, scale=0.1, **drawn)
    part = random_affine(image[2:], degrees=10, shift=0.1, scale=0.1, **(drawn | {"first": 2}))
    assert torch.equal(part, moved[2:])
    assert moved.shape == image.shape
    assert (moved - image).abs().max() > 0.05
    assert moved.min() >= image.min()
    assert moved.max() <= image.max()


def test_accuracy_by_hand() -> None:
    dataset = Dataset("x", [b"a", b"b", b"c"], np.array([0, 1, 1]), ("ant", "bee"))

    def classify(images: object, top_k: int) -> list[Classification]:
        assert images == [b"a", b"b", b"c"]
        order = [("ant", "bee"), ("ant", "bee"), ("cat", "dog")]
        return [
            Classification(tuple(Prediction(label, 0, 0.9 - 0.1 * i) for i, label in enumerate(labels)))
            for labels in order
        ]

    found = evaluate_classifier(classify, ["bee", "ant", "cat", "dog"], dataset)
    assert [found.top1, found.top5] == pytest.approx([1 / 3, 2 / 3])
    assert found.per_class == (ClassResult("ant", 1, 1, 1), ClassResult("bee", 2, 0, 1))
    assert found.agreement is None

    def other(images: object, top_k: int) -> list[Classification]:
        return [Classification((Prediction(label, 0, 1.0),)) for label in ("ant", "bee", "cat")][: len(list(images))]  # type: ignore[call-overload]

    assert evaluate_classifier(classify, ["bee", "ant", "cat", "dog"], dataset, other).agreement == pytest.approx(2 / 3)
    with pytest.raises(ConfigError, match="does not know: bee"):
        evaluate_classifier(classify, ["ant"], dataset)
    assert math.isfinite(found.images_per_second)

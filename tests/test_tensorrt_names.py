"""Every name of TensorRT that we use is in the real bindings, and the doubles take the arguments those take."""

from __future__ import annotations

import importlib.util
import inspect
import json
from pathlib import Path

import pytest

import tests.fake_tensorrt as doubles
from tests.golden.write_tensorrt_names import GOLDEN, RTX_ONLY, arguments, missing, used_names


def library() -> Path:
    spec = importlib.util.find_spec("tensorrt_bindings")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("tensorrt-cu13-bindings is not installed: it is for Linux on x86-64")
    return Path(spec.submodule_search_locations[0]) / "tensorrt.so"


def test_every_name_we_use_is_in_both_majors() -> None:
    used = used_names() - RTX_ONLY
    assert {"execute_async_v3", "decomposable", "TF32", "phase_start", "get_timing_cache", "UINT8"} <= used
    assert used == set(json.loads(GOLDEN.read_text())["identifiers"]), "run tests/golden/write_tensorrt_names.py"
    assert not missing(used, library())


def test_every_name_we_use_is_in_tensorrt_for_rtx() -> None:
    spec = importlib.util.find_spec("tensorrt_rtx_bindings")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("tensorrt-rtx-cu13-bindings is not installed: it is for Linux and Windows on x86-64")
    assert not missing(used_names() | RTX_ONLY, Path(spec.submodule_search_locations[0]) / "tensorrt_rtx.so")


@pytest.mark.parametrize("major", ["10", "11"])
def test_the_doubles_take_the_arguments_that_the_docstrings_name(major: str) -> None:
    known = json.loads(GOLDEN.read_text())["arguments"] if major == "10" else arguments(library())
    classes = {
        "IExecutionContext": doubles._Context,
        "ICudaEngine": doubles._Engine,
    }
    module = doubles.fake_tensorrt(None, doubles.Behaviour(), "11")  # type: ignore[arg-type]
    compared = set()
    for name, names in known.items():
        kind, method = name.split(".")
        double = classes.get(kind) or getattr(module, kind, None) or getattr(doubles, kind, None)
        if names and double is not None and hasattr(double, method):  # some docstrings name none of them
            assert list(inspect.signature(getattr(double, method)).parameters)[1:] == names, name
            compared.add(name)
    assert {"IExecutionContext.execute_async_v3", "IBuilderConfig.create_timing_cache"} <= compared
    assert len(compared) > 15


def test_the_bindings_alone_cannot_be_imported() -> None:
    library()
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed here")
    with pytest.raises(ImportError, match=r"libnv\w+\.so"):
        importlib.import_module("tensorrt_bindings")

"""The peer: nncf's post-training quantisation of our own fp32 graph, as its documentation has it for transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sovit.artifact import INPUT, Artifact
from sovit.cores import available_cores
from sovit.runtime.openvino import open_openvino


def quantize_with_nncf(artifact: Artifact, images: Sequence[NDArray[np.uint8]], out: Path) -> None:
    """Quantise with the transformer preset on the same calibration images, and write OpenVINO's own format."""
    import nncf
    import openvino

    model = openvino.Core().read_model(artifact.graph)
    data: Any = nncf.Dataset([{INPUT: image[None]} for image in images])
    quantized = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(images))
    out.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(quantized, out, compress_to_fp16=False)


def run_openvino(
    graph: Path, artifact: Artifact, images_BYXC: NDArray[np.uint8]
) -> dict[str, NDArray[np.float32]]:  # fmt: skip
    """The peer's `pre_logits` of these images, one by one."""
    manifest = artifact.manifest
    lane, *_ = open_openvino(
        graph, precision="fp32", inputs=manifest.inputs, outputs=manifest.outputs[:1], threads=available_cores()
    )
    rows = [lane.run(image[None])["pre_logits"] for image in images_BYXC]
    lane.close()
    return {"pre_logits": np.concatenate(rows)}

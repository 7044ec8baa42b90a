"""Export to OpenVINO: float32, bf16 as a hint to the CPU, or int8 that NNCF calibrates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nestling.environment import needed
from nestling.errors import InputError, first_line
from nestling.models.engines.openvino import Inputs, quantize, quiet
from nestling.models.exported_encoder import INPUTS, OPENVINO
from nestling.models.tokens import Tokens
from nestling.serving.export.graph import example, whole

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

INT8 = "--precision int8 of a transformer"


def write_openvino(
    model: SentenceTransformer, tokens: Tokens, folder: Path, *, precision: str, calibration: Sequence[str]
) -> None:
    """Write `openvino_model.xml` and `.bin`.

    bf16 keeps the weights in float16, which has more bits than bf16 computes with.

    Args:
        precision: `fp32`, `bf16` or `int8`.
        calibration: texts that int8 is calibrated on, one a forward pass, prompts included; else not looked at.

    Raises:
        InputError: openvino or nncf is missing, openvino cannot convert the model, or the CPU has no bf16.
    """
    import torch

    openvino = needed("the export to OpenVINO", "openvino")
    if precision == "bf16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise InputError("--precision bf16 needs a CPU with bf16, and this one has none; choose fp32 or int8")
    ids, mask = example(model)
    try:
        with quiet(), torch.inference_mode():
            converted = openvino.convert_model(
                whole(model),
                example_input=dict(zip(INPUTS, (ids, mask), strict=True)),
                input=[(name, openvino.PartialShape([-1, -1]), openvino.Type.i64) for name in INPUTS],
            )
    except Exception as error:  # openvino raises its own kinds, and torch's tracer any
        raise InputError(f"openvino cannot convert this model ({first_line(error)}); try --format onnx") from None
    if precision == "int8":
        converted = quantize(converted, calibration_items(tokens, calibration), INT8)
    openvino.save_model(converted, folder / OPENVINO, compress_to_fp16=precision == "bf16")


def calibration_items(tokens: Tokens, calibration: Sequence[str]) -> list[Inputs]:
    """Return the inputs of a forward pass for each text."""
    return [dict(zip(INPUTS, tokens.padded([ids]), strict=True)) for ids in tokens.ids(calibration) if ids]

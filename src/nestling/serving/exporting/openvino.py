"""Export to OpenVINO: float32, bf16 as a hint to the CPU, or int8 that NNCF calibrates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling.errors import InputError
from nestling.extras import needed
from nestling.serving.encoder import INPUTS, OPENVINO
from nestling.serving.exporting.graph import example, first_line, quiet, whole
from nestling.serving.tokens import Tokens

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


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
        converted = quantize(converted, tokens, calibration)
    openvino.save_model(converted, folder / OPENVINO, compress_to_fp16=precision == "bf16")


def quantize(graph: Any, tokens: Tokens, calibration: Sequence[str], *, keep: tuple[str, ...] = ()) -> Any:
    """Return a graph (OpenVINO's or ONNX's) whose matrix products NNCF made int8, calibrated on texts.

    SmoothQuant (Xiao et al. 2023, arXiv 2211.10438) moves outliers of the activations into the weights, and biases
    are corrected for what rounding shifts.

    Args:
        keep: types of operations that stay in float32.

    Raises:
        InputError: nncf is missing or cannot quantize the graph.
    """
    nncf = needed("--precision int8 of a transformer", "nncf")
    items = [dict(zip(INPUTS, tokens.padded([ids]), strict=True)) for ids in tokens.ids(calibration) if ids]
    try:
        with quiet():
            return nncf.quantize(
                graph,
                nncf.Dataset(items),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(items),
                ignored_scope=nncf.IgnoredScope(types=list(keep), validate=False) if keep else None,
            )
    except Exception as error:  # nncf raises kinds of its own
        raise InputError(f"nncf cannot quantize this model ({first_line(error)}); choose fp32") from None

"""Export to ONNX: one graph from token ids to the vector, in float32, or in int8 that NNCF calibrates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nestling.environment import needed
from nestling.errors import InputError, first_line
from nestling.models.engines.openvino import quantize, quiet
from nestling.models.exported_encoder import INPUTS, ONNX
from nestling.models.tokens import Tokens
from nestling.serving.export.graph import example, whole

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

OPSET = 17
OUTPUT = "embedding"
LARGE_TABLE = 2**20
"""Numbers from which a table is worth decoding row by row."""


def write_onnx(
    model: SentenceTransformer, tokens: Tokens, folder: Path, *, precision: str, calibration: Sequence[str]
) -> None:
    """Write `model.onnx`, batch and length left open.

    Args:
        precision: `fp32` or `int8`.
        calibration: texts that int8 is calibrated on, prompts included; else not looked at.

    Raises:
        InputError: onnx, onnxruntime or (for int8) nncf is missing, or torch cannot trace the model.
    """
    import torch

    from nestling.serving.export.openvino import INT8, calibration_items

    onnx = needed("the export to ONNX", "onnx", "onnxruntime")
    path = folder / ONNX
    axes = {name: {0: "n", 1: "length"} for name in INPUTS}
    try:
        # The traced export: that of torch.export gives two values one name in these graphs (torch 2.13).
        with quiet(), torch.no_grad():
            torch.onnx.export(
                whole(model),
                example(model),
                str(path),
                input_names=list(INPUTS),
                output_names=[OUTPUT],
                dynamic_axes={**axes, OUTPUT: {0: "n"}},
                opset_version=OPSET,
                dynamo=False,
            )
    except Exception as error:  # torch's tracer raises any kind
        raise InputError(f"torch cannot export this model to ONNX ({first_line(error)})") from None
    if precision == "int8":
        from onnxruntime.quantization.shape_inference import (  # type: ignore[import-untyped,unused-ignore]
            quant_pre_process,
        )

        with quiet():
            quant_pre_process(str(path), str(path), skip_symbolic_shape=True)
        # NNCF's way with tables has onnxruntime decode a whole one at each call.
        graph = quantize(onnx.load(path), calibration_items(tokens, calibration), INT8, keep=("Gather",))
        shrink_tables(graph)
        onnx.save(graph, path)


def shrink_tables(graph: Any) -> None:
    """Make large tables of a graph int8, in place, one scale a row; only the rows that are looked up are decoded."""
    from onnx import TensorProto, helper, numpy_helper

    tables = {tensor.name: tensor for tensor in graph.graph.initializer}
    nodes = []
    for node in graph.graph.node:
        table = tables.get(node.input[0]) if node.op_type == "Gather" else None
        large = table is not None and table.data_type == TensorProto.FLOAT and len(table.dims) == 2
        if table is None or not large or table.dims[0] * table.dims[1] < LARGE_TABLE or axis_of(node) != 0:
            nodes.append(node)
            continue
        rows = numpy_helper.to_array(table)
        scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
        whole_rows = np.rint(rows / np.where(scales > 0, scales, 1)).astype(np.int8)
        result, ids = node.output[0], node.input[1]
        for name, values in ((f"{result}.rows", whole_rows), (f"{result}.scales", scales.astype(np.float32))):
            graph.graph.initializer.append(numpy_helper.from_array(values, name))
            nodes.append(helper.make_node("Gather", [name, ids], [f"{name}.found"], f"{name}.gather"))
        nodes += [
            helper.make_node("Cast", [f"{result}.rows.found"], [f"{result}.float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{result}.float", f"{result}.scales.found"], [result]),
        ]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.graph.initializer if tensor.name in used]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(kept)


def axis_of(node: Any) -> int:
    """Return the axis that a Gather looks up along."""
    return next((int(each.i) for each in node.attribute if each.name == "axis"), 0)

"""Formats of an export: a static model's table, or a transformer's graph from token ids to the vector; int8 of each."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling, StaticEmbedding, WordEmbeddings
from torch import Tensor, nn

from nestling.environment import needed
from nestling.errors import InputError, first_line
from nestling.models.engines.openvino import OUTPUT, Inputs, quantize, quiet
from nestling.models.exported_encoder import INPUTS, ONNX, OPENVINO, TABLE, has_bf16

ADVICE = "only transformers with pooling, dense layers, normalisation and word tables, and static tables, are exported"
OPSET = 17
VECTOR = "embedding"
LARGE_TABLE = 2**20
"""Numbers from which a table is worth decoding row by row."""
INT8 = "--precision int8 of a transformer"


def refuse_unknown(model: SentenceTransformer) -> None:
    """Raise InputError for a model that the runtime would not reproduce."""
    for place, module in enumerate(model):
        later = (Pooling, Dense, Normalize, WordEmbeddings, LayerNorm)
        if not isinstance(module, later if place else (Transformer, StaticEmbedding)):
            raise InputError(f"module {place} is a {type(module).__name__}, which cannot be exported; {ADVICE}")
        if isinstance(module, Pooling) and not module.include_prompt and any(model.prompts.values()):
            raise InputError(f"module {place} leaves the prompt's tokens out of pooling, which cannot be exported")
    if any((model.module_kwargs or {}).values()):
        raise InputError("the model passes arguments to its modules at each call, which cannot be exported")
    if isinstance(model[0], Transformer):
        way = model[0].modality_config.get("text", {})
        if way.get("method") != "forward" or way.get("method_output_name") not in (OUTPUT, (OUTPUT,), [OUTPUT]):
            raise InputError(f"the transformer gives no {OUTPUT}, so it cannot be exported; {ADVICE}")


class _OneModule(nn.Module):
    """A copy of a transformer model as one module: ids and mask, (n, length) int64, to (n, dim) float32."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        first, *rest = copy.deepcopy(list(model))
        self.transformer, self.output = first.model, first.module_output_name
        self.rest = nn.ModuleList(rest)
        self.float().eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)[OUTPUT]
        features = {"input_ids": input_ids, "attention_mask": attention_mask, self.output: hidden}
        for module in self.rest:
            features = module(features)
        vectors: Tensor = features["sentence_embedding"]
        return vectors


def _example(model: SentenceTransformer) -> tuple[Tensor, Tensor]:
    """Return ids and mask of two texts, one padded, so that a trace meets padding."""
    ids = (torch.arange(16).reshape(2, 8) % len(model.tokenizer)).to(torch.int64)
    mask = torch.ones_like(ids)
    mask[1, slice(3) if model.tokenizer.padding_side == "left" else slice(5, None)] = 0
    ids[mask == 0] = model.tokenizer.pad_token_id or 0
    return ids, mask


def write_onnx(model: SentenceTransformer, folder: Path, *, precision: str, calibration: Sequence[Inputs]) -> None:
    """Write `model.onnx`, batch and length left open; InputError where torch cannot trace the model."""
    onnx = needed("the export to ONNX", "onnx", "onnxruntime")
    path = folder / ONNX
    try:
        # The traced export: that of torch.export gives two values one name in these graphs (torch 2.13).
        with quiet(), torch.no_grad():
            torch.onnx.export(
                _OneModule(model),
                _example(model),
                str(path),
                input_names=list(INPUTS),
                output_names=[VECTOR],
                dynamic_axes={**{name: {0: "n", 1: "length"} for name in INPUTS}, VECTOR: {0: "n"}},
                opset_version=OPSET,
                dynamo=False,
            )
    except Exception as error:  # torch's tracer raises any kind
        raise InputError(f"torch cannot export this model to ONNX ({first_line(error)})") from None
    if precision == "int8":
        from onnxruntime.quantization import shape_inference  # type: ignore[import-untyped,unused-ignore]

        with quiet():
            shape_inference.quant_pre_process(str(path), str(path), skip_symbolic_shape=True)
        # NNCF's way with tables has onnxruntime decode a whole one at each call.
        graph = quantize(onnx.load(path), calibration, INT8, keep=("Gather",))
        _shrink_tables(graph)
        onnx.save(graph, path)


def write_openvino(model: SentenceTransformer, folder: Path, *, precision: str, calibration: Sequence[Inputs]) -> None:
    """Write `openvino_model.xml` and `.bin`; InputError where OpenVINO cannot convert the model.

    bf16 is a hint to the CPU, and keeps the weights in float16, which has more bits than bf16 computes with.
    """
    openvino = needed("the export to OpenVINO", "openvino")
    if precision == "bf16" and not has_bf16(openvino.Core()):
        raise InputError("--precision bf16 needs a CPU with bf16, and this one has none; choose fp32 or int8")
    try:
        with quiet(), torch.inference_mode():
            converted = openvino.convert_model(
                _OneModule(model),
                example_input=dict(zip(INPUTS, _example(model), strict=True)),
                input=[(name, openvino.PartialShape([-1, -1]), openvino.Type.i64) for name in INPUTS],
            )
    except Exception as error:  # openvino raises its own kinds, and torch's tracer any
        raise InputError(f"openvino cannot convert this model ({first_line(error)}); try --format onnx") from None
    if precision == "int8":
        converted = quantize(converted, calibration, INT8)
    openvino.save_model(converted, folder / OPENVINO, compress_to_fp16=precision == "bf16")


def _shrink_tables(graph: Any) -> None:
    """Make large tables of a graph int8, in place, one scale a row; only the rows that are looked up are decoded."""
    from onnx import TensorProto, helper, numpy_helper

    tables = {
        tensor.name: tensor
        for tensor in graph.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2 and np.prod(tensor.dims) >= LARGE_TABLE
    }
    nodes = []
    for node in graph.graph.node:
        along_rows = not any(each.name == "axis" and each.i for each in node.attribute)
        if node.op_type != "Gather" or node.input[0] not in tables or not along_rows:
            nodes.append(node)
            continue
        whole_rows, scales = int8_rows(numpy_helper.to_array(tables[node.input[0]]))
        result, ids = node.output[0], node.input[1]
        for name, values in ((f"{result}.rows", whole_rows), (f"{result}.scales", scales)):
            graph.graph.initializer.append(numpy_helper.from_array(values, name))
            nodes.append(helper.make_node("Gather", [name, ids], [f"{name}.gathered"], f"{name}.gather"))
        nodes += [
            helper.make_node("Cast", [f"{result}.rows.gathered"], [f"{result}.float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{result}.float", f"{result}.scales.gathered"], [result]),
        ]
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.graph.initializer if tensor.name in used]
    for field, entries in (("node", nodes), ("initializer", kept)):
        graph.graph.ClearField(field)
        getattr(graph.graph, field).extend(entries)


def write_table(model: SentenceTransformer, folder: Path, *, precision: str) -> None:
    """Write `table.safetensors`, linear layers multiplied into the table; int8 has one scale a row.

    A linear layer without a bias takes the mean of rows to the mean of the rows that it makes; bringing to length 1
    comes last in the runtime, wherever it stands among such layers.
    """
    if precision not in ("fp32", "int8"):
        raise InputError(f"a static model's table is exported in fp32 or int8, not in {precision}")
    rows = model[0].embedding.weight.detach().cpu().double().numpy()
    for place, module in enumerate(list(model)[1:], 1):
        if isinstance(module, Normalize) and module.module_output_name == module.module_input_name:
            continue
        linear = (
            isinstance(module, Dense)
            and module.linear.bias is None
            and isinstance(module.activation_function, torch.nn.Identity)
            and not module.use_residual
        )
        if not linear:
            what = f"module {place} of the static model is a {type(module).__name__} that is not linear"
            raise InputError(f"{what}, which cannot be exported")
        rows = rows @ module.linear.weight.detach().cpu().double().numpy().T
    rows = rows[:, : model.truncate_dim]
    arrays: dict[str, NDArray[Any]] = {"rows": np.ascontiguousarray(rows, dtype=np.float32)}
    if precision == "int8":
        whole_rows, scales = int8_rows(rows)
        arrays = {"rows": whole_rows, "scales": scales[:, 0]}
    save_file(arrays, folder / TABLE)


def int8_rows(rows: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return a table in int8, and the scale of each row, (n, 1): its largest magnitude over 127."""
    scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    return np.rint(rows / np.where(scales > 0, scales, 1)).astype(np.int8), scales.astype(np.float32)

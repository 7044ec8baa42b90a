"""Engine of OpenVINO: a transformer converted from torch in memory, for the CPU, shapes left open; int8 by NNCF."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nestling.environment import needed
from nestling.errors import InputError, first_line
from nestling.models.exported_encoder import Padded, compiled, has_bf16

if TYPE_CHECKING:
    from sentence_transformers.base.modules import Transformer

Inputs = Mapping[str, NDArray[np.int64]]
"""Token ids and their mask by name, (n, length) each."""
OUTPUT = "last_hidden_state"


class OpenVinoTransformer(nn.Module):
    """Stands in for a transformer: token ids and their mask in, hidden states out; also from several threads."""

    def __init__(self, run: Padded, config: Any) -> None:
        super().__init__()
        self.config = copy.deepcopy(config)
        self.config.output_hidden_states = False
        self.run = run

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> dict[str, Tensor]:
        """(n, length) int64, twice -> (n, length, hidden) float32."""
        hidden = self.run({"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()})
        return {OUTPUT: torch.from_numpy(hidden)}


class _Traced(nn.Module):
    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return cast(Tensor, self.transformer(input_ids=input_ids, attention_mask=attention_mask)[OUTPUT])


def convert(module: Transformer, precision: str, *, vocabulary: int) -> Any:
    """Convert the transformer of a module, whose token ids are below `vocabulary`, to a graph in float32."""
    openvino = needed(f"engine openvino-{precision}", "openvino")
    text = module.modality_config.get("text", {})
    if text.get("method") != "forward" or text.get("method_output_name") not in (OUTPUT, (OUTPUT,), [OUTPUT]):
        raise InputError(f"engine openvino-{precision} cannot run this model (no last hidden state); choose torch-fp32")
    if precision == "bf16" and not has_bf16(openvino.Core()):
        raise InputError("engine openvino-bf16 needs a CPU with bf16, and this one has none; choose openvino-fp32")
    ids = (torch.arange(16).reshape(2, 8) % vocabulary).to(torch.int64)
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    try:
        with quiet(), torch.inference_mode():
            return openvino.convert_model(
                _Traced(copy.deepcopy(module.model).eval()),
                example_input=example,
                input=[(name, openvino.PartialShape([-1, -1]), openvino.Type.i64) for name in example],
            )
    except Exception as error:  # openvino raises its own kinds, and torch's tracer any
        raise InputError(
            f"engine openvino-{precision} cannot convert this model ({first_line(error)}); choose torch-fp32"
        ) from None


def compile_graph(graph: Any, module: Transformer, precision: str) -> OpenVinoTransformer:
    """Compile a graph that was converted from a module, with as many threads as torch has."""
    core = needed(f"engine openvino-{precision}", "openvino").Core()
    run = compiled(core, graph, bf16=precision == "bf16", threads=torch.get_num_threads())
    return OpenVinoTransformer(run, module.model.config)


def quantize(graph: Any, inputs: Sequence[Inputs], what: str, *, keep: tuple[str, ...] = ()) -> Any:
    """Return a graph (OpenVINO's or ONNX's) whose matrix products NNCF made int8.

    SmoothQuant (Xiao et al. 2023, arXiv 2211.10438) moves outliers of the activations into the weights, and biases
    are corrected for what rounding shifts. It is calibrated on inputs of forward passes. Operations of the types in
    `keep` stay in float32; `what` names the caller in messages.
    """
    nncf = needed(what, "nncf")
    try:
        with quiet():
            return nncf.quantize(
                graph,
                nncf.Dataset(list(inputs)),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(inputs),
                ignored_scope=nncf.IgnoredScope(types=list(keep), validate=False) if keep else None,
            )
    except Exception as error:  # nncf raises kinds of its own
        raise InputError(f"nncf cannot quantize this model ({first_line(error)}); choose fp32") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the warnings of tracers and quantizers: what they get wrong a comparison finds."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        # Quantizers draw progress on stdout, where --json prints.
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)

"""Engine of OpenVINO: a transformer converted from torch in memory, for the CPU, shapes left open."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nestling.errors import InputError
from nestling.extras import needed

if TYPE_CHECKING:
    from sentence_transformers.base.modules import Transformer


class OpenVinoTransformer(nn.Module):
    """Stands in for a transformer: token ids and their mask in, hidden states out."""

    def __init__(self, request: Any, config: Any, output: str) -> None:
        super().__init__()
        self.request, self.config, self.output = request, config, output

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> dict[str, Tensor]:
        """(n, length) int64, twice -> (n, length, hidden) float32."""
        inputs = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        found = self.request.infer(inputs, share_inputs=True)
        return {self.output: torch.from_numpy(found[0])}


class _Traced(nn.Module):
    def __init__(self, transformer: nn.Module, output: str) -> None:
        super().__init__()
        self.transformer, self.output = transformer, output

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden: Tensor = self.transformer(input_ids=input_ids, attention_mask=attention_mask)[self.output]
        return hidden


def convert(module: Transformer, precision: str, *, vocabulary: int) -> OpenVinoTransformer:
    """Convert the transformer of a module and compile it with as many threads as torch has.

    Args:
        precision: `bf16` or `fp32`.
        vocabulary: ids of the example that is traced are below it.

    Raises:
        InputError: openvino is missing or not able to convert it, the CPU has no bf16, or the module is not of the
            plain kind, text to last hidden state.
    """
    openvino = needed(f"engine openvino-{precision}", "openvino")
    way = module.modality_config.get("text", {})
    output = "last_hidden_state"
    if way.get("method") != "forward" or way.get("method_output_name") not in (output, (output,), [output]):
        raise InputError(f"engine openvino-{precision} cannot run this model (no last hidden state); choose torch-fp32")
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise InputError("engine openvino-bf16 needs a CPU with bf16, and this one has none; choose openvino-fp32")

    ids = (torch.arange(16).reshape(2, 8) % vocabulary).to(torch.int64)
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    try:
        with _quiet(), torch.inference_mode():
            converted = openvino.convert_model(
                _Traced(copy.deepcopy(module.model).eval(), output),
                example_input=example,
                input=[(name, openvino.PartialShape([-1, -1]), openvino.Type.i64) for name in example],
            )
            compiled = core.compile_model(
                converted,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp32": "f32"}[precision],
                    "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                    "PERFORMANCE_HINT": "LATENCY",
                },
            )
    except Exception as error:  # openvino raises its own kinds, and torch's tracer any
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"engine openvino-{precision} cannot convert this model ({first}); choose torch-fp32"
        ) from None
    config = copy.deepcopy(module.model.config)
    config.output_hidden_states = False
    return OpenVinoTransformer(compiled.create_infer_request(), config, output)


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what the tracer says of every shape that it meets; what it gets wrong the caller's comparison finds."""
    loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

"""Engines: ways to run a model's transformer when it encodes; all else of the model stays as it is, in float32."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from nestling.errors import InputError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

Name = Literal["auto", "torch-fp32", "torch-bf16", "torch-fp16", "openvino-bf16", "openvino-fp32"]
ENGINES: tuple[Name, ...] = get_args(Name)
STOCK = "torch-fp32"
TOKENS = 8192
"""Of a forward pass, padding included: a fixed number of texts is too few of short ones."""
PROBES = ("drill", "cordless drill with two batteries, a charger and a bag", "a white steel door " * 8)
AGREEMENT = 0.99
"""Least cosine of a token's hidden state with float32's. In bf16 the tokens of MiniLM have .999 and more."""


@dataclass(frozen=True, eq=False)
class Engine:
    """A model made ready to encode in one way.

    Attributes:
        name: of the engine that was settled on, never `auto`; for results and for keys of a cache.
        reason: why this one, in words.
        model: what `embed` and `encode` take. But for `torch-fp32`, which has the model itself, it is a view with the
            weights as they were when it was made: a later training of the model does not reach its transformer.
        tokens: in a forward pass; None leaves it to `embed`'s number of texts.
    """

    name: str
    reason: str
    model: SentenceTransformer
    tokens: int | None = None


def engine_for(name: str, model: SentenceTransformer) -> Engine:
    """Make a model ready to encode with an engine; the model itself is left as it is.

    `auto` computes in bf16 (or fp16, on a GPU without bf16) where the machine reports it, else in float32. A model that
    starts with something other than a transformer, as a static one, gets `torch-fp32` whatever the name: nothing in
    it would be faster. An engine's transformer must agree with float32 on a few texts, so that one which reads a model
    wrongly is found out before it is used; then `auto` falls back to `torch-fp32`.

    On a CPU, keeps the memory that is freed for the whole process (`keep_freed_memory`) unless the engine is
    `torch-fp32`.

    Args:
        name: one of `ENGINES`. `openvino-...` needs the package `openvino`, and converts the model: seconds.
        model: in float32, on the device that it is to run on.

    Raises:
        InputError: no engine of that name, its package is missing, or the machine or the model does not suit it.
    """
    from sentence_transformers.base.modules import Transformer

    if name not in ENGINES:
        raise InputError(f"unknown engine {name!r}; choose one of {', '.join(ENGINES)}")
    asked = name
    reason = "as asked"
    if name == "auto":
        name, reason = _choose(model)
    if name == STOCK:
        return Engine(STOCK, reason, model)
    if not isinstance(model[0], Transformer):
        return Engine(STOCK, f"the model starts with {type(model[0]).__name__}, not with a transformer", model)
    if name == "torch-fp16" and model.device.type == "cpu":
        raise InputError("engine torch-fp16 needs a GPU; choose torch-bf16, torch-fp32 or auto")
    if name.startswith("openvino") and model.device.type != "cpu":
        raise InputError(f"engine {name} runs on the CPU, and the model is on {model.device}; choose auto")

    try:
        view = _with_transformer(model, _transformer(name, model))
        agreement = _agreement(model, view)
        fault = "" if agreement >= AGREEMENT else f"a token's hidden state has cosine {agreement:.3f} with float32's"
    except InputError:
        raise
    except (RuntimeError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        fault = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not fault:
        if model.device.type == "cpu":
            from nestling.training.precision import keep_freed_memory

            keep_freed_memory()
        return Engine(name, reason, view, TOKENS)
    if asked != "auto":
        raise InputError(f"engine {name} cannot run this model ({fault}); choose torch-fp32")
    logger.warning("engine %s cannot run this model (%s); torch-fp32 it is", name, fault)
    return Engine(STOCK, f"{name} cannot run this model", model)


def _choose(model: SentenceTransformer) -> tuple[str, str]:
    import torch

    from nestling.training.precision import choose_precision

    where = model.device.type
    if where not in ("cpu", "cuda") or (where == "cpu" and torch.cuda.is_available()):
        return STOCK, f"nothing is known of other arithmetic on {where}"
    precision = choose_precision("auto")
    return f"torch-{precision.name}", precision.reason


def _transformer(name: str, model: SentenceTransformer) -> nn.Module:
    import torch

    _, _, precision = name.partition("-")
    if name.startswith("openvino"):
        from nestling.evaluation.engine_openvino import convert

        return convert(model[0], precision, vocabulary=len(model.tokenizer))
    from nestling.evaluation.engine_torch import cast_copy

    return cast_copy(model[0].model, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def _with_transformer(model: SentenceTransformer, transformer: nn.Module) -> SentenceTransformer:
    """Return a model that shares everything with `model` but what runs inside its first module."""
    view, first = _shallow(model), _shallow(model[0])
    first.model = transformer
    view[0] = first
    return view


def _shallow(module: Any) -> Any:
    # The table of submodules has to be the copy's own, or a module set in the copy is set in the original too.
    shallow = copy.copy(module)
    shallow.__dict__["_modules"] = dict(module._modules)
    return shallow


def _agreement(model: SentenceTransformer, view: SentenceTransformer) -> float:
    """Return the least cosine between the two models' hidden states of a token, over batches of differing shapes."""
    import torch

    was_training = model[0].training
    model[0].eval()
    try:
        least = 1.0
        with torch.inference_mode():
            for texts in (PROBES[:1], PROBES, PROBES[1:]):
                expected, found = (_hidden(each, texts) for each in (model, view))
                least = min(least, float(torch.cosine_similarity(expected, found, dim=-1).nan_to_num(-1.0).min()))
        return least
    finally:
        model[0].train(was_training)


def _hidden(model: SentenceTransformer, texts: tuple[str, ...]) -> Tensor:
    features = model.preprocess(list(texts))
    features = {k: v.to(model.device) if hasattr(v, "to") else v for k, v in features.items()}
    out = model[0](features)
    hidden: Tensor = out[model[0].module_output_name].float()
    return hidden[out["attention_mask"].bool()] if hidden.ndim == 3 else hidden

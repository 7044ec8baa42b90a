"""Engines: ways to run a model's transformer when it encodes; all else of the model stays as it is, in float32."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nestling.config.names import ENGINES
from nestling.environment import needed
from nestling.errors import InputError, first_line
from nestling.models.cached_encoder import texts_fingerprint
from nestling.models.precision import choose_precision, keep_freed_memory
from nestling.models.torch_encoder import embed
from nestling.retrieval.exact_search import top_k
from nestling.retrieval.vectors import int8_instructions

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor, nn

    from nestling.models.engines.openvino import Inputs

logger = logging.getLogger(__name__)

STOCK = "torch-fp32"
INT8 = "openvino-int8"
TOKENS = 8192
"""Of a forward pass, padding included: a fixed number of texts is too few of short ones."""
PROBES = ("drill", "cordless drill with two batteries, a charger and a bag", "a white steel door " * 8)
AGREEMENT = 0.99
"""Least cosine of a token's hidden state with float32's."""
WORTH = 8_000
"""Texts from which `auto` converts a model to OpenVINO: with fewer the seconds of that are not made up for."""
CALIBRATION = 100
"""Queries, and as many documents, that int8 is calibrated on."""
TRIED_QUERIES, TRIED_DOCUMENTS = 200, 1_000
K = 10
LEAST_SHARE, LEAST_SHARE_JUDGED = 0.95, 0.9
"""Of float32's ten nearest documents, that int8 finds: without judgments, and where recall@10 is measured beside it."""
LARGEST_LOSS = 0.005
"""Of recall@10 on dev, that int8 may have."""


class Judged(Protocol):
    """Queries, documents and which of these are relevant to which of those, as `evaluation.qrels.Qrels` has them."""

    @property
    def n_queries(self) -> int: ...
    @property
    def n_documents(self) -> int: ...
    @property
    def queries(self) -> Sequence[str]: ...
    @property
    def documents(self) -> Sequence[str]: ...
    @property
    def relevant_indptr(self) -> NDArray[np.int64]: ...
    @property
    def relevant_columns(self) -> NDArray[np.int64]: ...


@dataclass(frozen=True, eq=False)
class Sample:
    """Texts that an int8 engine is calibrated on and tried with, and how many there will be.

    Attributes:
        queries, documents: such as are to be encoded; a few are taken, always the same ones. Without queries the first
            words of documents stand in for them.
        texts: about how many are to be encoded; None for a service, which has no end.
        judged: a dev side, on which recall@10 must not fall.
    """

    queries: Sequence[str]
    documents: Sequence[str]
    texts: int | None
    judged: Judged | None = None


@dataclass(frozen=True, eq=False)
class Engine:
    """A model made ready to encode in one way.

    Attributes:
        name: of the engine that was settled on, never `auto`; for results.
        reason: why this one, in words.
        model: what `embed` and `encode` take. But for `torch-fp32`, which has the model itself, it is a view with the
            weights as they were when it was made: a later training of the model does not reach its transformer.
        tokens: in a forward pass; None leaves it to `embed`'s number of texts.
        calibration: fingerprint of the texts that int8 was calibrated on; of other engines empty.
    """

    name: str
    reason: str
    model: SentenceTransformer
    tokens: int | None = None
    calibration: str = ""

    @property
    def key(self) -> str:
        """What a vector of this engine depends on beside its model; for keys of a cache."""
        return f"{self.name} {self.calibration}" if self.calibration else self.name


def engine_for(name: str, model: SentenceTransformer, *, sample: Sample | None = None) -> Engine:
    """Make a model ready to encode with an engine; the model itself is left as it is.

    `auto` computes in bf16 (or fp16, on a GPU without bf16) where the machine reports it. On a CPU without bf16 it
    converts the model to OpenVINO where that package is there and many texts are to be encoded: in int8 where the CPU
    has instructions for it (VNNI), else in float32. Otherwise it is `torch-fp32`. A model that starts with something
    other than a transformer, as a static one, gets `torch-fp32` whatever the name: nothing in it would be faster.

    An engine's transformer must agree with float32 on a few texts, so that one which reads a model wrongly is found out
    before it is used; and int8 must find the documents that float32 finds, and lose no recall on dev, on a sample.
    Where it does not, `auto` falls back to the next best.

    On a CPU, keeps the memory that is freed for the whole process (`keep_freed_memory`) unless the engine is
    `torch-fp32`.

    Args:
        name: one of `ENGINES`. `openvino-...` needs the package `openvino`, and converts the model: seconds;
            `openvino-int8` needs `nncf` too, and takes longer.
        model: in float32, on the device that it is to run on.
        sample: of the texts to encode. Without one `auto` converts nothing, and int8 is calibrated and tried on the
            generated catalogue.

    Raises:
        InputError: no engine of that name, its package is missing, or the machine or the model does not suit it.
    """
    from sentence_transformers.base.modules import Transformer

    if name not in ENGINES:
        raise InputError(f"unknown engine {name!r}; choose one of {', '.join(ENGINES)}")
    choices = _choices(model, sample) if name == "auto" else [(name, "as asked")]
    for place, (chosen, reason) in enumerate(choices):
        if chosen == STOCK:
            break
        if not isinstance(model[0], Transformer):
            reason = f"the model starts with {type(model[0]).__name__}, not with a transformer"
            break
        try:
            return _made(chosen, reason, model, sample)
        except InputError as error:
            if name != "auto":
                raise
            after = choices[place + 1][0] if place + 1 < len(choices) else STOCK
            logger.warning("%s; %s it is", str(error).partition("; choose ")[0], after)
            reason = f"{chosen} cannot run this model"
    return Engine(STOCK, reason, model)


def _choices(model: SentenceTransformer, sample: Sample | None) -> list[tuple[str, str]]:
    """Return the engines for `auto` and why, the best first."""
    import torch

    where = model.device.type
    if where not in ("cpu", "cuda") or (where == "cpu" and torch.cuda.is_available()):
        return [(STOCK, f"nothing is known of other arithmetic on {where}")]
    precision = choose_precision("auto")
    if precision.name != "fp32":
        return [(f"torch-{precision.name}", precision.reason)]
    stock = (STOCK, precision.reason)
    if sample is None or (sample.texts is not None and sample.texts < WORTH):
        return [stock]
    if find_spec("openvino") is None:
        return [(STOCK, f"{precision.reason}; pip install 'nestling[openvino]' for an engine that is faster there")]
    found = int8_instructions()
    plain = ("openvino-fp32", precision.reason)
    if not found:
        return [plain, stock]
    if find_spec("nncf") is None:
        return [("openvino-fp32", f"{precision.reason}; pip install nncf for int8, which is faster there"), stock]
    return [(INT8, f"{precision.reason}, but {' and '.join(found)}"), plain, stock]


def _made(name: str, reason: str, model: SentenceTransformer, sample: Sample | None) -> Engine:
    """Make an engine other than `torch-fp32` and hold it against float32.

    Raises:
        InputError: it cannot be had, or computes something else.
    """
    where = model.device
    if name == "torch-fp16" and where.type == "cpu":
        raise InputError("engine torch-fp16 needs a GPU; choose torch-bf16, torch-fp32 or auto")
    if name.startswith("openvino") and where.type != "cpu":
        raise InputError(f"engine {name} runs on the CPU, and the model is on {where}; choose auto")
    calibration = ""
    try:
        if name == INT8:
            view, calibration, fault = _int8(model, sample or _generated())
        else:
            view = _with_transformer(model, _transformer(name, model))
            fault = _disagreement(model, view)
    except (RuntimeError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        fault = first_line(error)
    if fault:
        raise InputError(f"engine {name} cannot run this model ({fault}); choose torch-fp32")
    if where.type == "cpu":
        keep_freed_memory()
    return Engine(name, reason, view, TOKENS, calibration)


def _transformer(name: str, model: SentenceTransformer) -> nn.Module:
    import torch

    _, _, precision = name.partition("-")
    if name.startswith("openvino"):
        from nestling.models.engines.openvino import compile_graph, convert

        return compile_graph(convert(model[0], precision, vocabulary=len(model.tokenizer)), model[0], precision)
    from nestling.models.engines.torch_half import cast_copy

    return cast_copy(model[0].model, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def _int8(model: SentenceTransformer, sample: Sample) -> tuple[SentenceTransformer, str, str]:
    """Return a view of a model in int8, the fingerprint of what it is calibrated on, and what is wrong with it."""
    from nestling.models.engines.openvino import compile_graph, convert, quantize

    needed(f"engine {INT8}", "nncf")
    graph = convert(model[0], "int8", vocabulary=len(model.tokenizer))
    plain = compile_graph(graph, model[0], "int8")
    exact = _with_transformer(model, plain)
    if fault := _disagreement(model, exact):
        return exact, "", fault
    documents = _some(sample.documents, CALIBRATION)
    queries = _some(sample.queries, CALIBRATION) or [_first_words(text) for text in documents]
    # What the transformer is given when the model encodes, prompts and truncation included, one text at a time.
    items: list[Inputs] = []
    plain.seen = items
    embed(exact, queries, kind="query", batch_size=1)
    embed(exact, documents, kind="document", batch_size=1)
    plain.seen = None
    view = _with_transformer(model, compile_graph(quantize(graph, items, f"engine {INT8}"), model[0], "int8"))
    return view, texts_fingerprint([*queries, *documents]), _loss(exact, view, sample)


def _loss(exact: SentenceTransformer, view: SentenceTransformer, sample: Sample) -> str:
    """Say what int8 loses beyond what it may; empty where nothing is."""
    relevant: list[NDArray[np.int64]] = []
    if sample.judged is None:
        documents = _some(sample.documents, TRIED_DOCUMENTS)
        queries = _some(sample.queries, TRIED_QUERIES) or [_first_words(text) for text in documents[:TRIED_QUERIES]]
    else:
        qrels = sample.judged
        rows = _places(qrels.n_queries, TRIED_QUERIES)
        starts = qrels.relevant_indptr
        relevant = [qrels.relevant_columns[starts[row] : starts[row + 1]] for row in rows]
        columns = np.unique(np.concatenate([*relevant, _places(qrels.n_documents, TRIED_DOCUMENTS)]))
        relevant = [np.searchsorted(columns, each) for each in relevant]
        queries, documents = [qrels.queries[row] for row in rows], [qrels.documents[column] for column in columns]
    rankings = [
        top_k(embed(each, queries, kind="query"), embed(each, documents, kind="document"), K)[0]
        for each in (exact, view)
    ]
    share = np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(*rankings, strict=True)])
    least = LEAST_SHARE_JUDGED if relevant else LEAST_SHARE
    if share < least:
        return f"of the {K} nearest documents in float32 it finds {share:.1%}, less than {least:.0%}"
    if relevant:
        before, after = (
            float(np.mean([np.isin(each, row).mean() for each, row in zip(relevant, ranking, strict=True)]))
            for ranking in rankings
        )
        if after < before - LARGEST_LOSS:
            return f"recall@{K} on a sample of dev falls from {before:.4f} to {after:.4f}"
    return ""


def _some(texts: Sequence[str], n: int) -> list[str]:
    """Return up to `n` of the texts, each once, always the same ones."""
    return list(dict.fromkeys(texts[place] for place in _places(len(texts), n)))


def _places(total: int, n: int) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(0).permutation(total)[:n])


def _first_words(text: str) -> str:
    return " ".join(text.split()[:4])


def _generated() -> Sample:
    from nestling.judgments.toolshed import generate

    frame = generate(1500, seed=0).frame
    return Sample(frame["query"].to_list(), frame["document"].to_list(), None)


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
    # MatryoshkaLoss and accelerate leave a `forward` on a model they trained: the original's, which would run there.
    shallow.__dict__.pop("forward", None)
    return shallow


def _disagreement(model: SentenceTransformer, view: SentenceTransformer) -> str:
    """Say how far two models' hidden states of a token are apart, over batches of differing shapes; empty if little."""
    import torch

    was_training = model[0].training
    model[0].eval()
    try:
        least = 1.0
        with torch.inference_mode():
            for texts in (PROBES[:1], PROBES, PROBES[1:]):
                expected, found = (_hidden(each, texts) for each in (model, view))
                least = min(least, float(torch.cosine_similarity(expected, found, dim=-1).nan_to_num(-1.0).min()))
        return "" if least >= AGREEMENT else f"a token's hidden state has cosine {least:.3f} with float32's"
    finally:
        model[0].train(was_training)


def _hidden(model: SentenceTransformer, texts: tuple[str, ...]) -> Tensor:
    features = model.preprocess(list(texts))
    features = {k: v.to(model.device) if hasattr(v, "to") else v for k, v in features.items()}
    out = model[0](features)
    hidden: Tensor = out[model[0].module_output_name].float()
    return hidden[out["attention_mask"].bool()] if hidden.ndim == 3 else hidden

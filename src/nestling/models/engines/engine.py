"""Engines: ways to run a model's transformer when it encodes; all else of the model stays as it is, in float32."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nestling.config.names import ENGINES
from nestling.environment import needed
from nestling.errors import InputError, first_line
from nestling.models.cached_encoder import texts_fingerprint
from nestling.models.engines.view import disagreement, with_transformer
from nestling.models.precision import choose_precision, keep_freed_memory
from nestling.models.torch_encoder import embed
from nestling.retrieval.exact_search import top_k
from nestling.retrieval.vectors import int8_instructions

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn

    from nestling.models.engines.openvino import Inputs

logger = logging.getLogger(__name__)

STOCK = "torch-fp32"
INT8 = "openvino-int8"
TOKENS = 8192
"""Of a forward pass, padding included: a fixed number of texts is too few of short ones."""
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

Judged = tuple[Sequence[str], Sequence[str], Sequence[NDArray[np.int64]]]
"""Queries, documents, and the places of the documents that are relevant to each query."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Texts that an int8 engine is calibrated on and tried with."""

    queries: Sequence[str]
    """May be none; the first words of documents then stand in for them."""
    documents: Sequence[str]
    texts: int | None
    """About how many are to be encoded; None for a service, which has no end."""
    judged: Judged | None = None
    """A dev side, on which recall@10 must not fall."""


@dataclass(frozen=True, eq=False)
class Engine:
    """A model made ready to encode in one way."""

    name: str
    reason: str
    model: SentenceTransformer
    """The model itself for `torch-fp32`, else a view with its weights as they are now."""
    tokens: int | None = None
    """In a forward pass; None leaves it to `embed`'s number of texts."""
    calibration: str = ""
    """Fingerprint of the texts that int8 was calibrated on."""

    @property
    def key(self) -> str:
        """The key of this engine in caches: all that a vector depends on beside its model."""
        return f"{self.name} {self.calibration}" if self.calibration else self.name


def engine_for(name: str, model: SentenceTransformer, *, sample: Sample | None = None) -> Engine:
    """Make a model ready to encode with an engine; the model itself is left as it is.

    `auto` computes in bf16 (or fp16, on a GPU without bf16) where the machine reports it. On a CPU without bf16 it
    converts the model to OpenVINO where that package is there and many texts are to be encoded: in int8 where the CPU
    has instructions for it (VNNI), else in float32. Otherwise it is `torch-fp32`, as for a model that starts with
    something other than a transformer.

    An engine's transformer must agree with float32 on a few texts; and int8 must find the documents that float32 finds,
    and lose no recall on dev, on a sample. Where it does not, `auto` falls back to the next best. On a CPU, engines
    other than `torch-fp32` keep the memory that is freed for the whole process.

    The model is in float32, on the device that it is to run on. Without a sample `auto` converts nothing, and int8 is
    calibrated and tried on the generated catalogue. InputError: the engine's package is missing, or the machine or the
    model does not suit it.
    """
    from sentence_transformers.base.modules import Transformer

    if name not in ENGINES:
        raise InputError(f"unknown engine {name!r}; choose one of {', '.join(ENGINES)}")
    choices = _choices(model, sample) if name == "auto" else [(name, "as asked")]
    for (choice, reason), (after, _) in pairwise([*choices, (STOCK, "")]):
        if choice == STOCK:
            break
        if not isinstance(model[0], Transformer):
            reason = f"the model starts with {type(model[0]).__name__}, not with a transformer"
            break
        try:
            return _make(choice, reason, model, sample)
        except InputError as error:
            if name != "auto":
                raise
            logger.warning("%s; %s it is", str(error).partition("; choose ")[0], after)
            reason = f"{choice} cannot run this model"
    return Engine(STOCK, reason, model)


def _choices(model: SentenceTransformer, sample: Sample | None) -> list[tuple[str, str]]:
    """Return the engines for `auto` and why, the best first."""
    import torch

    device = model.device.type
    if device not in ("cpu", "cuda") or (device == "cpu" and torch.cuda.is_available()):
        return [(STOCK, f"nothing is known of other arithmetic on {device}")]
    precision = choose_precision("auto")
    if precision.name != "fp32":
        return [(f"torch-{precision.name}", precision.reason)]
    stock, plain = (STOCK, precision.reason), ("openvino-fp32", precision.reason)
    if sample is None or (sample.texts is not None and sample.texts < WORTH):
        return [stock]
    if find_spec("openvino") is None:
        return [(STOCK, f"{precision.reason}; pip install 'nestling[openvino]' for an engine that is faster there")]
    instructions = int8_instructions()
    if not instructions:
        return [plain, stock]
    if find_spec("nncf") is None:
        return [("openvino-fp32", f"{precision.reason}; pip install nncf for int8, which is faster there"), stock]
    return [(INT8, f"{precision.reason}, but {' and '.join(instructions)}"), plain, stock]


def _make(name: str, reason: str, model: SentenceTransformer, sample: Sample | None) -> Engine:
    """Make an engine other than `torch-fp32`; InputError where it cannot be, or computes something else."""
    device = model.device
    if name == "torch-fp16" and device.type == "cpu":
        raise InputError("engine torch-fp16 needs a GPU; choose torch-bf16, torch-fp32 or auto")
    if name.startswith("openvino") and device.type != "cpu":
        raise InputError(f"engine {name} runs on the CPU, and the model is on {device}; choose auto")
    calibration = ""
    try:
        if name == INT8:
            if sample is None:
                from nestling.judgments.toolshed import generate

                frame = generate(1500, seed=0).frame
                sample = Sample(frame["query"].to_list(), frame["document"].to_list(), None)
            view, calibration, fault = _int8(model, sample)
        else:
            view = with_transformer(model, _transformer(name, model))
            fault = disagreement(model, view)
    except (RuntimeError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        fault = first_line(error)
    if fault:
        raise InputError(f"engine {name} cannot run this model ({fault}); choose torch-fp32")
    if device.type == "cpu":
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
    exact = with_transformer(model, plain)
    if fault := disagreement(model, exact):
        return exact, "", fault
    queries, documents = _drawn(sample, CALIBRATION, CALIBRATION)
    # The transformer's inputs when the model encodes, prompts and truncation included, one text at a time.
    inputs: list[Inputs] = []
    run = plain.run

    def noting(given: Inputs) -> NDArray[np.float32]:
        inputs.append(given)
        return run(given)

    plain.run = noting
    embed(exact, queries, kind="query", batch_size=1)
    embed(exact, documents, kind="document", batch_size=1)
    plain.run = run
    view = with_transformer(model, compile_graph(quantize(graph, inputs, f"engine {INT8}"), model[0], "int8"))
    return view, texts_fingerprint([*queries, *documents]), _loss(exact, view, sample)


def _loss(exact: SentenceTransformer, view: SentenceTransformer, sample: Sample) -> str:
    """Say what int8 loses beyond what it may; empty where nothing is."""
    relevant: list[NDArray[np.int64]] = []
    if sample.judged is None:
        queries, documents = _drawn(sample, TRIED_QUERIES, TRIED_DOCUMENTS)
    else:
        all_queries, all_documents, all_relevant = sample.judged
        rows = _places(len(all_queries), TRIED_QUERIES)
        relevant = [all_relevant[row] for row in rows]
        columns = np.unique(np.concatenate([*relevant, _places(len(all_documents), TRIED_DOCUMENTS)]))
        relevant = [np.searchsorted(columns, places) for places in relevant]
        queries, documents = [all_queries[row] for row in rows], [all_documents[column] for column in columns]
    before, after = (
        top_k(embed(model, queries, kind="query"), embed(model, documents, kind="document"), K)[0]
        for model in (exact, view)
    )
    share = np.mean([np.isin(row, other).mean() for row, other in zip(before, after, strict=True)])
    least = LEAST_SHARE_JUDGED if relevant else LEAST_SHARE
    if share < least:
        return f"of the {K} nearest documents in float32 it finds {share:.1%}, less than {least:.0%}"
    if relevant:
        recalls = [
            np.mean([np.isin(places, row).mean() for places, row in zip(relevant, ranking, strict=True)])
            for ranking in (before, after)
        ]
        if recalls[1] < recalls[0] - LARGEST_LOSS:
            return f"recall@{K} on a sample of dev falls from {recalls[0]:.4f} to {recalls[1]:.4f}"
    return ""


def _drawn(sample: Sample, n_queries: int, n_documents: int) -> tuple[list[str], list[str]]:
    """Return distinct queries (else first words of documents) and documents, up to so many, always the same ones."""
    queries, documents = (
        list(dict.fromkeys(texts[place] for place in _places(len(texts), n)))
        for texts, n in ((sample.queries, n_queries), (sample.documents, n_documents))
    )
    return queries or [" ".join(text.split()[:4]) for text in documents[:n_queries]], documents


def _places(total: int, n: int) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(0).permutation(total)[:n])

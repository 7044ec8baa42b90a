"""Train a cross-encoder, and the transformer once more with it as its teacher.

The teacher is first model and cross-encoder together, as neither alone ranks as well.
Distilling cross-encoders into models that embed: Hofstätter et al. 2020, "Improving efficient neural ranking models
with cross-architecture knowledge distillation" (arXiv 2010.02666), with KL over a query's candidates as in RocketQAv2
(Ren et al. 2021, arXiv 2110.07367).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from nestling import atomic
from nestling.config.training import Distill, TrainingSettings
from nestling.errors import InputError
from nestling.judgments.table import Judgments
from nestling.models.load import ModelSource, find_model, load_model
from nestling.training.batches.batching import Collator, LengthBatches
from nestling.training.batches.pseudo_queries import pseudo_queries
from nestling.training.batches.tokens import tokenised
from nestling.training.cross_encoder import (
    Candidates,
    RerankEvaluator,
    judged_pairs,
    load,
    logits,
    measured_rows,
    with_head,
)
from nestling.training.inputs.contrastive import positives
from nestling.training.inputs.starts import transformer, untrained
from nestling.training.losses.contrastive import PairValues, loss_for
from nestling.training.spec import TrainingInputs, TrainingSpec
from nestling.training.steps.context import MODEL, Context, StepResult
from nestling.training.steps.finetune import Trainee, train
from nestling.training.steps.guard import Guard

TEACHER, STUDENT = "cross-encoder", "student"
"""Folders of the two trainings, within the step's."""
MINED, DEV, SCORED = "mined.npz", "dev.npz", "scored.npz"
"""Candidates of the train side and of dev, and the first of the former with the cross-encoder's scores."""
N_MINED, N_SCORED, N_RERANKED = 30, 16, 20
"""Candidates of a query to draw negatives from, to score for the student, and to measure a cross-encoder by on dev."""
AT_ONCE = 65_536
"""Pairs to score before their logits are written down."""
KEPT = {"seed", "max_seq_length", "precision", "weight_decay", "checkpoint_seconds", "report_to"}
"""Settings that hold for every training here."""
OF_TEACHER = {"epochs": 2, "batch_size": 64, "learning_rate": 1e-4}
"""A cross-encoder's training; the two latter at most what the settings say, since they may be what memory allows."""
DRAWN = 8
"""Candidates of each query in a batch of the student, and at most so many judged documents, drawn anew each time."""
QUERIES_A_PAIR, STUDENT_RATE = 3 / 8, 0.7
"""The student's queries in a batch and learning rate, against the first training's pairs in a batch and its rate."""


def distill(step: Distill, context: Context) -> StepResult:
    """Train a cross-encoder from a model, then the model once more as its student, where dev is not lower for it.

    A cross-encoder with which dev's candidates are ranked no better than without has no student.
    """
    spec, settings = context.spec, context.spec.settings
    mined, dev, scored = (context.folder / name for name in (MINED, DEV, SCORED))
    pairs = positives(context.train, spec)
    pseudo = pseudo_queries(pairs, seed=settings.seed)
    queries = [*pairs.queries, *pseudo]
    with context.main_first():
        if not dev.is_file():
            _mine(context, queries, pairs.documents, mined, dev)
    base, candidates = find_model(str(context.model)), Candidates.load(mined)
    of_teacher = TrainingSpec(base, TEACHER, _of_teacher(settings), spec.threshold, cache=spec.cache)
    evaluator = RerankEvaluator(
        context.evaluator.qrels, Candidates.load(dev), scale=settings.finetune.scale, precision=settings.precision
    )
    cross_encoder = Trainee(
        lambda _, spec: with_head(untrained(spec), seed=spec.settings.seed),
        partial(judged_pairs, candidates=candidates),
        evaluator,
        load,
    )
    teacher = train(context.aside(TEACHER, of_teacher), cross_encoder)
    if not _better(teacher.after, evaluator.figures(evaluator.candidates.similarities)):
        line = "the cross-encoder: with it dev's candidates are ranked no better than without"
        return context.finish(lambda guard: guard.leave_out(line), **{TEACHER: teacher})
    with context.main_first():
        if not scored.is_file():
            first = Candidates(candidates.documents[:, :N_SCORED], candidates.similarities[:, :N_SCORED])
            _score(context.folder / TEACHER / MODEL, first, queries, pairs.documents, scored, context)
    of_student = context.aside(STUDENT, replace(spec, base=base, settings=_of_student(settings)))
    inputs = partial(distilled, candidates=Candidates.load(scored), pseudo=pseudo)
    student = train(of_student, Trainee(transformer, inputs))

    def make(guard: Guard) -> Path | None:
        without, with_it = (
            context.evaluator.of_vectors(context.evaluator.vectors(load_model(str(folder))))
            for folder in (context.model, of_student.folder / MODEL)
        )
        kept = guard.keep("what the cross-encoder taught", [with_it], without) is not None
        return of_student.folder / MODEL if kept else None

    return context.finish(make, **{TEACHER: teacher, STUDENT: student})


def check_transformer(base: ModelSource) -> None:
    """Raise InputError where a base has no transformer to make a cross-encoder of, before anything is trained."""
    if isinstance(load_model(base)[0], StaticEmbedding):
        raise InputError(f"model {base.name!r} is static; a cross-encoder needs a transformer")


def _better(after: dict[str, float], before: dict[str, float]) -> bool:
    # By the sum, as reranking moves the first right answer more often than it brings another among the ten.
    return sum(after.values()) > sum(before.values())


def _of_teacher(settings: TrainingSettings) -> TrainingSettings:
    limits = {name: min(OF_TEACHER[name], getattr(settings, name)) for name in ("batch_size", "learning_rate")}
    kept = settings.model_dump(include=KEPT)
    return TrainingSettings.model_validate({**kept, **OF_TEACHER, **limits, "hidden_dropout": 0.0})


def _of_student(settings: TrainingSettings) -> TrainingSettings:
    step = settings.finetune.model_copy(update={"crops": 0, "bm25": 0.0, "rotate_first": False})
    return TrainingSettings(
        **settings.model_dump(include=KEPT),
        epochs=1,
        batch_size=max(2, int(settings.batch_size * QUERIES_A_PAIR)),
        learning_rate=settings.learning_rate * STUDENT_RATE,
        hidden_dropout=0.0,
        finetune=step,
        distill=settings.distill,
    )


def _mine(context: Context, queries: list[str], documents: list[str], mined: Path, dev: Path) -> None:
    """Write the candidates of the training queries and of the dev queries that a cross-encoder is measured on."""
    model, qrels = load_model(str(context.model)), context.evaluator.qrels
    Candidates.nearest(model, queries, documents, N_MINED).save(mined)
    dev_queries = [qrels.queries[row] for row in measured_rows(qrels)]
    Candidates.nearest(model, dev_queries, qrels.documents, N_RERANKED).save(dev)


def _score(
    teacher: Path, candidates: Candidates, queries: list[str], documents: list[str], path: Path, context: Context
) -> None:
    """Write the candidates with their logits; each block of pairs is in a file of its own until all are scored."""
    model = load(str(teacher))
    query, document = candidates.pairs()
    blocks = path.with_suffix(".blocks")
    blocks.mkdir(exist_ok=True)
    parts = []
    for start in range(0, len(query), AT_ONCE):
        block, rows = blocks / f"{start}.npy", slice(start, start + AT_ONCE)
        if not block.is_file():
            texts = [(queries[q], documents[d]) for q, d in zip(query[rows], document[rows], strict=True)]
            context.say(f"the cross-encoder reads pairs {start + 1:,} to {start + len(texts):,} of {len(query):,}")
            with atomic.new_file(block) as temporary:
                np.save(temporary, logits(model, texts, precision=context.spec.settings.precision))
        parts.append(np.load(block))
    replace(candidates, logits=np.concatenate(parts).reshape(candidates.documents.shape)).save(path)
    shutil.rmtree(blocks)


@dataclass(frozen=True)
class QueryCollator(Collator):
    """Batches of queries with some judged documents and some `candidates`, (n_queries, k) int64, of each."""

    candidates: NDArray[np.int64]

    def numbers(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        queries, pairs = np.unique(rows), self.pairs
        drawn = [self.candidates[query, rng.permutation(self.candidates.shape[1])[:DRAWN]] for query in queries]
        # Judged pairs are sorted by query.
        bounds = np.searchsorted(pairs.judged_query, [queries, queries + 1]).T
        judged = np.concatenate([rng.permutation(np.arange(*each))[:DRAWN] for each in bounds])
        documents = np.unique(np.concatenate([*drawn, pairs.judged_document[judged]]))
        own = judged[pairs.judged_score[judged] > pairs.threshold]
        return {
            "query": queries,
            "document": documents,
            "anchor": np.searchsorted(queries, pairs.judged_query[own]),
            "positive": np.searchsorted(documents, pairs.judged_document[own]),
        }


def distilled(
    judgments: Judgments, spec: TrainingSpec, model: SentenceTransformer, candidates: Candidates, pseudo: list[str]
) -> TrainingInputs:
    """Prepare the contrastive loss on batches of queries with their candidates, a cross-encoder as its teacher.

    The library's distillation losses know no positives and no batch beside a query's own candidates.

    Args:
        candidates: with logits, of the raters' queries and of the pseudo-queries after them.
    """
    step, weight = spec.settings.finetune, (spec.settings.distill or Distill()).weight
    pairs = positives(judgments, spec)
    pairs = replace(pairs, queries=[*pairs.queries, *pseudo])
    documents = tokenised(model, pairs.documents, kind="document", cache=spec.cache)
    queries = tokenised(model, pairs.queries, kind="query", cache=spec.cache)
    n_documents = len(pairs.documents)
    query, document = candidates.pairs()
    teacher = PairValues(
        query, document, candidates.scores_of_both(step.scale).ravel(), n_documents=n_documents, missing=np.nan
    )
    judged = pairs.judged_query * n_documents + pairs.judged_document
    free = ~np.isin(query * n_documents + document, judged)
    # Likely enough to be right answers that no rater saw.
    ignored = PairValues(query[free], document[free], np.ones(free.sum()), n_documents=n_documents)
    loss = loss_for(model, pairs, spec, ignored=ignored, teacher=teacher, teacher_weight=weight)
    return TrainingInputs(
        Dataset.from_dict({"row": np.arange(len(pairs.queries))}),
        loss,
        QueryCollator(pairs, queries.batch, documents.batch, spec.settings.seed, candidates.documents),
        partial(LengthBatches, documents.lengths[candidates.documents].sum(axis=1)),
        vocabulary=np.unique(np.concatenate([queries.ids, documents.ids])),
    )

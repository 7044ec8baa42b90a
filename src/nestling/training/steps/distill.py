"""Train a cross-encoder, and the transformer once more with it as its teacher.

The teacher is first model and cross-encoder together, as neither alone ranks as well.
Distilling cross-encoders into models that embed: Hofstätter et al. 2020, "Improving efficient neural ranking models
with cross-architecture knowledge distillation" (arXiv 2010.02666), with KL over a query's candidates as in RocketQAv2
(Ren et al. 2021, arXiv 2110.07367).
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from nestling import atomic
from nestling.config.training import Distill, TrainingSettings
from nestling.errors import InputError
from nestling.models.load import ModelSource, find_model, load_model
from nestling.training.batches.pseudo_queries import pseudo_queries
from nestling.training.distill.cross_encoder import (
    Candidates,
    RerankEvaluator,
    judged_pairs,
    load,
    logits,
    measured_rows,
    with_head,
)
from nestling.training.distill.student import distilled
from nestling.training.inputs.contrastive import positives
from nestling.training.inputs.starts import transformer, untrained
from nestling.training.spec import TrainingSpec
from nestling.training.steps.context import MODEL, Context, StepResult
from nestling.training.steps.finetune import Trainee, train
from nestling.training.steps.guard import Guard

TEACHER, STUDENT = "cross-encoder", "student"
"""Folders of the two trainings, within the step's."""
MINED, DEV, SCORED = "mined.npz", "dev.npz", "scored.npz"
"""Candidates of the train side and of dev, and the first of the former with the cross-encoder's scores."""
N_MINED = 30
"""Candidates that a cross-encoder's negatives are drawn from."""
N_SCORED = 16
"""Candidates of a training query that it scores for its student."""
N_RERANKED = 20
"""Candidates of a dev query that it is measured by."""
AT_ONCE = 65_536
"""Pairs to score before their logits are written down."""
KEPT = {"seed", "max_seq_length", "precision", "weight_decay", "checkpoint_seconds", "report_to"}
"""Settings that hold for every training here."""
OF_TEACHER = {"epochs": 2, "batch_size": 64, "learning_rate": 1e-4}
"""A cross-encoder's training; the two latter at most what the settings say, since they may be what memory allows."""
QUERIES_A_PAIR = 3 / 8
"""Queries in a batch of the student against pairs in one of the first training: each brings many documents along."""
STUDENT_RATE = 0.7
"""The student's learning rate against that of the first training."""


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

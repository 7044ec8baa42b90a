"""Train a cross-encoder, and the transformer once more with it as its teacher.

The teacher is first model and cross-encoder together, as neither alone ranks as well.
Distilling cross-encoders into models that embed: Hofstätter et al. 2020, "Improving efficient neural ranking models
with cross-architecture knowledge distillation" (arXiv 2010.02666), with KL over a query's candidates as in RocketQAv2
(Ren et al. 2021, arXiv 2110.07367).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nestling import atomic
from nestling.config.training import Distill, TrainingSettings
from nestling.errors import InputError
from nestling.evaluation.qrels import Qrels
from nestling.judgments.table import Judgments
from nestling.models.load import ModelSource, find_model, load_model
from nestling.training.batches.batching import Pairs
from nestling.training.batches.pseudo_queries import invented
from nestling.training.distill.candidates import Candidates
from nestling.training.distill.student import distilled
from nestling.training.inputs.contrastive import positives
from nestling.training.inputs.starts import transformer, untrained
from nestling.training.spec import INVENTED, TrainingInputs, TrainingSpec
from nestling.training.steps.context import MODEL, Context, StepResult
from nestling.training.steps.finetune import Trainee, train
from nestling.training.steps.guard import Guard

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from nestling.training.distill.cross_encoder import RerankEvaluator

TEACHER, STUDENT = "cross-encoder", "student"
"""Folders of the two trainings, within the step's."""
FOUND, READ_OVER = "candidates", "candidates-read"
"""Folders of candidates, before and after the cross-encoder has read them."""
MINED = 30
"""Candidates that a cross-encoder's negatives are drawn from."""
READ = 16
"""Candidates of a training query that it reads for its student."""
RERANKED = 20
"""Candidates of a dev query that it is measured by."""
AT_ONCE = 65_536
"""Pairs to read before what was made of them is written down."""
KEPT = {"seed", "max_seq_length", "precision", "weight_decay", "checkpoint_seconds", "report_to"}
"""Settings that hold for every training here."""
OF_TEACHER = {"epochs": 2, "batch_size": 64, "learning_rate": 1e-4}
"""A cross-encoder's training; the two latter at most what the settings say, since they may be what memory allows."""
QUERIES_A_PAIR = 3 / 8
"""Queries in a batch of the student against pairs in one of the first training: each brings many documents along."""
STUDENT_RATE = 0.7
"""The student's learning rate against that of the first training."""


def distill(step: Distill, context: Context) -> StepResult:
    """Train a cross-encoder from a model, then the model once more, taught by it, where dev is not lower for it.

    A cross-encoder with which dev's candidates are ranked no better than without teaches nobody.
    """
    spec, found, read = context.spec, context.folder / FOUND, context.folder / READ_OVER
    check_transformer(spec.base)
    pairs, _ = positives(context.train, spec)
    qrels = context.evaluator.qrels
    with context.main_first():
        if not found.is_dir():
            _find(load_model(str(context.model)), pairs, qrels, found, seed=spec.settings.seed)
    base = find_model(str(context.model))
    of_teacher = TrainingSpec(
        base, TEACHER, _of_teacher(spec.settings), spec.threshold, cache=spec.cache, candidates=found
    )
    teacher = train(context.aside(TEACHER, of_teacher), CROSS_ENCODER)
    trainings = [(TEACHER, teacher)]
    if not _better(teacher.after, teacher.base):
        line = "the cross-encoder: with it dev's candidates are ranked no better than without"
        return context.finish(lambda guard: guard.say_left_out(line), trainings)
    with context.main_first():
        if not read.is_dir():
            _read(context.folder / TEACHER / MODEL, pairs, found, read, spec, context.say)
    of_student = context.aside(STUDENT, replace(spec, base=base, settings=_of_student(spec.settings), candidates=read))
    trainings.append((STUDENT, train(of_student, Trainee(transformer, distilled))))

    def make(guard: Guard) -> Path | None:
        figures = [
            context.evaluator.of_vectors(context.evaluator.vectors(load_model(str(model))))
            for model in (context.model, of_student.folder / MODEL)
        ]
        kept = guard.keep("what the cross-encoder taught", figures[1:], figures[0]) is not None
        return of_student.folder / MODEL if kept else None

    return context.finish(make, trainings)


def check_transformer(base: ModelSource) -> None:
    """Raise InputError where a base has no transformer to make a cross-encoder of, before anything is trained."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    if isinstance(load_model(base)[0], StaticEmbedding):
        raise InputError(f"model {base.name!r} is static; a cross-encoder needs a transformer")


def _untrained_cross_encoder(judgments: Judgments, spec: TrainingSpec) -> SentenceTransformer:
    from nestling.training.distill.cross_encoder import with_head

    return with_head(untrained(spec), seed=spec.settings.seed)


def _pairs_read_together(judgments: Judgments, spec: TrainingSpec, model: SentenceTransformer) -> TrainingInputs:
    from nestling.training.distill.cross_encoder import prepare

    return prepare(judgments, spec, model)


def _reranking(qrels: Qrels, spec: TrainingSpec) -> RerankEvaluator:
    from nestling.training.distill.cross_encoder import RerankEvaluator

    candidates = Candidates.load(spec.candidate_file("dev"))
    settings = spec.settings
    return RerankEvaluator(qrels, candidates, scale=settings.finetune.scale, precision=settings.precision)


CROSS_ENCODER = Trainee(_untrained_cross_encoder, _pairs_read_together, _reranking)


def _better(after: dict[str, float], before: dict[str, float]) -> bool:
    # By the sum, as reranking moves the first right answer more often than it brings another among the ten.
    return sum(after.values()) > sum(before.values())


def _of_teacher(settings: TrainingSettings) -> TrainingSettings:
    limits = {name: min(OF_TEACHER[name], getattr(settings, name)) for name in ("batch_size", "learning_rate")}
    kept = settings.model_dump(include=KEPT)
    scale = {"finetune": {"scale": settings.finetune.scale}}
    return TrainingSettings.model_validate({**kept, **scale, **OF_TEACHER, **limits, "hidden_dropout": 0.0})


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


def _find(model: SentenceTransformer, pairs: Pairs, qrels: Qrels, folder: Path, *, seed: int) -> None:
    from nestling.training.distill.cross_encoder import measured_rows

    queries = [qrels.queries[row] for row in measured_rows(qrels)]
    more = invented(pairs, seed=seed)
    with atomic.new_folder(folder) as temporary:
        Candidates.nearest(model, [*pairs.queries, *more], pairs.documents, MINED).save(temporary / "train.npz")
        atomic.write_json(temporary / INVENTED, more)
        Candidates.nearest(model, queries, qrels.documents, RERANKED).save(temporary / "dev.npz")


def _read(
    teacher: Path, pairs: Pairs, found: Path, folder: Path, spec: TrainingSpec, say: Callable[[str], None]
) -> None:
    """Read candidates block by block, each in a file of its own until all are read."""
    from nestling.training.distill.cross_encoder import PairTokens, logits

    candidates = Candidates.load(found / "train.npz").first(READ)
    more = json.loads((found / INVENTED).read_text(encoding="utf-8"))
    model = load_model(str(teacher))
    tokens = PairTokens(model, [*pairs.queries, *more], pairs.documents)
    query, document = candidates.pairs()
    blocks = folder.with_name(f"{folder.name}.blocks")
    blocks.mkdir(exist_ok=True)
    parts = []
    for start in range(0, len(query), AT_ONCE):
        path = blocks / f"{start}.npy"
        if not path.is_file():
            stop = min(start + AT_ONCE, len(query))
            say(f"the cross-encoder reads pairs {start + 1:,} to {stop:,} of {len(query):,}")
            made = logits(model, tokens, query[start:stop], document[start:stop], precision=spec.settings.precision)
            with atomic.new_file(path) as temporary, temporary.open("wb") as file:
                np.save(file, made)
        parts.append(np.load(path))
    read = replace(candidates, logits=np.concatenate(parts).reshape(candidates.documents.shape))
    with atomic.new_folder(folder) as temporary:
        read.save(temporary / "train.npz")
        atomic.write_json(temporary / INVENTED, more)
    shutil.rmtree(blocks)

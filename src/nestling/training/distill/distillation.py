"""A cross-encoder trained after a transformer, and the transformer trained once more with it as its teacher.

The teacher is first model and cross-encoder together, as neither alone ranks as well. Figures: docs/experiments.md.
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
from nestling.config.training import TrainingSettings
from nestling.evaluation.qrels import Qrels
from nestling.judgments.table import Judgments
from nestling.models.load import find_model, load_model
from nestling.training.batches.batching import Pairs
from nestling.training.batches.pseudo_queries import invented
from nestling.training.distill.candidates import Candidates
from nestling.training.recipes.contrastive import positives_above
from nestling.training.result import TrainingResult
from nestling.training.spec import INVENTED, Job
from nestling.training.steps.guard import Figures, Guard

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

TRANSFORMER, TEACHER, STUDENT = "transformer", "cross-encoder", "student"
"""Folders of the first training and of those here, within the work folder."""
FOUND, READ_OVER = "candidates", "candidates-read"
"""Folders of candidates, before and after the cross-encoder has read them."""
VERDICT = "teaching.json"
MINED = 30
"""Candidates that a cross-encoder's negatives are drawn from."""
READ = 16
"""Candidates of a training query that it reads for its student."""
RERANKED = 20
"""Candidates of a dev query that it is measured by."""
AT_ONCE = 65_536
"""Pairs to read before what was made of them is written down."""
KEPT = {"seed", "max_seq_length", "precision", "scale", "weight_decay", "checkpoint_seconds", "report_to"}
"""Settings that hold for every training here."""
OF_TEACHER = {"epochs": 2, "batch_size": 64, "learning_rate": 1e-4}
"""A cross-encoder's training; the two latter at most what the settings say, since they may be what memory allows."""
QUERIES_A_PAIR = 3 / 8
"""Queries in a batch of the student against pairs in one of the first training: each brings many documents along."""
STUDENT_RATE = 0.7
"""The student's learning rate against that of the first training."""


def teach(
    part: Callable[[str, Job], TrainingResult],
    whole: Callable[[str], tuple[SentenceTransformer, Figures]],
    train: Judgments,
    dev: Judgments,
    job: Job,
    guard: Guard,
    *,
    work: Path,
    processes: SentenceTransformerTrainingArguments,
) -> str:
    """Train a cross-encoder from a trained transformer, then the transformer once more, taught by it.

    A cross-encoder with which dev's candidates are ranked no better than without teaches nobody.

    Args:
        part: trains a job under a name in the work folder, or returns what an earlier call made of it.
        whole: makes a model, at full size, of a transformer's name, and returns its figures on dev too.
        guard: decides whether the taught transformer is kept.
        processes: the arguments of a training, for those of a distributed one.

    Returns:
        the name of the transformer to take.
    """
    pairs = Pairs.from_judgments(train, threshold=positives_above(train, job, generous=True))
    qrels = Qrels.from_judgments(dev, threshold=job.threshold)
    found, read = work / FOUND, work / READ_OVER
    with processes.main_process_first(local=False):
        if not found.is_dir():
            _find(whole(TRANSFORMER)[0], pairs, qrels, found, seed=job.settings.seed)
    base = find_model(str(work / TRANSFORMER))
    teacher = part(
        TEACHER, Job(base, TEACHER, _of_teacher(job.settings), job.threshold, cache=job.cache, candidates=found)
    )
    if not _better(teacher.after, teacher.base):
        guard.say_left_out("the cross-encoder: with it dev's candidates are ranked no better than without")
        return TRANSFORMER
    with processes.main_process_first(local=False):
        if not read.is_dir():
            _read(work / TEACHER, pairs, found, read, job, guard.say)
    part(STUDENT, replace(job, base=base, settings=_of_student(job.settings), candidates=read))
    with processes.main_process_first(local=False):
        if not (work / VERDICT).is_file():
            verdict = Guard()
            before, after = (whole(name)[1] for name in (TRANSFORMER, STUDENT))
            verdict.keep("what the cross-encoder taught", [after], before)
            atomic.write_json(work / VERDICT, verdict.left_out)
    left_out = json.loads((work / VERDICT).read_text(encoding="utf-8"))
    for line in left_out:
        guard.say_left_out(line)
    return TRANSFORMER if left_out else STUDENT


def _better(after: dict[str, float], before: dict[str, float]) -> bool:
    # By the sum, as reranking moves the first right answer more often than it brings another among the ten.
    return sum(after.values()) > sum(before.values())


def _of_teacher(settings: TrainingSettings) -> TrainingSettings:
    limits = {name: min(OF_TEACHER[name], getattr(settings, name)) for name in ("batch_size", "learning_rate")}
    kept = settings.model_dump(include=KEPT)
    return TrainingSettings(**{**kept, **OF_TEACHER, **limits, "hidden_dropout": 0.0})


def _of_student(settings: TrainingSettings) -> TrainingSettings:
    kept = settings.model_dump(include={*KEPT, "cross_encoder", "positives_above"})
    return TrainingSettings(
        **kept,
        epochs=1,
        batch_size=max(2, int(settings.batch_size * QUERIES_A_PAIR)),
        learning_rate=settings.learning_rate * STUDENT_RATE,
        hidden_dropout=0.0,
        rotate_first=False,
    )


def _find(model: SentenceTransformer, pairs: Pairs, qrels: Qrels, folder: Path, *, seed: int) -> None:
    from nestling.training.distill.cross_encoder import measured_rows

    queries = [qrels.queries[row] for row in measured_rows(qrels)]
    more = invented(pairs, seed=seed)
    with atomic.new_folder(folder) as temporary:
        Candidates.nearest(model, [*pairs.queries, *more], pairs.documents, MINED).save(temporary / "train.npz")
        atomic.write_json(temporary / INVENTED, more)
        Candidates.nearest(model, queries, qrels.documents, RERANKED).save(temporary / "dev.npz")


def _read(teacher: Path, pairs: Pairs, found: Path, folder: Path, job: Job, say: Callable[[str], None]) -> None:
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
            made = logits(model, tokens, query[start:stop], document[start:stop], precision=job.settings.precision)
            with atomic.new_file(path) as temporary, temporary.open("wb") as file:
                np.save(file, made)
        parts.append(np.load(path))
    read = replace(candidates, logits=np.concatenate(parts).reshape(candidates.documents.shape))
    with atomic.new_folder(folder) as temporary:
        read.save(temporary / "train.npz")
        atomic.write_json(temporary / INVENTED, more)
    shutil.rmtree(blocks)

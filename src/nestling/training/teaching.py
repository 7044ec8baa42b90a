"""A cross-encoder trained beside a transformer, and the transformer trained once more with it as its teacher.

On 1,753 queries of Home Depot's dev side, see docs/experiments.md. The teacher is first model and cross-encoder
together, as neither alone ranks as well. Distilling cross-encoders into models that embed: Hofstätter et al. 2020,
"Improving efficient neural ranking models with cross-architecture knowledge distillation" (arXiv 2010.02666), with
KL over a query's candidates as in RocketQAv2 (Ren et al. 2021, arXiv 2110.07367).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nestling import atomic
from nestling.evaluation.qrels import Qrels
from nestling.judgments.table import Judgments
from nestling.models import find_model, load_model, no_bars
from nestling.training.batching import Pairs
from nestling.training.candidates import Candidates
from nestling.training.contrastive import positives_above
from nestling.training.job import INVENTED, Job
from nestling.training.pseudo_queries import invented
from nestling.training.result import RECALL, TrainingResult

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

logger = logging.getLogger(__name__)

TEACHER, STUDENT = "cross-encoder", "student"
MINED = 30
"""Candidates that a cross-encoder's negatives are drawn from."""
READ = 16
"""Candidates of a training query that it reads for its student."""
RERANKED = 20
"""Candidates of a dev query that it is measured by."""
TAUGHT_TABLE = "taught-table"
FIRST, SECOND = "candidates", "candidates-read"


@dataclass(frozen=True)
class Taught:
    """What came of the teaching.

    Attributes:
        transformer: the folder, within the work folder, of the transformer to take.
        results: of the trainings that led there.
        read: whether the cross-encoder was worth reading candidates with.
    """

    transformer: str
    results: list[TrainingResult]
    read: bool


def teach(
    part: Callable[[str, Job], TrainingResult],
    first_model: Callable[[], SentenceTransformer],
    train: Judgments,
    dev: Judgments,
    job: Job,
    *,
    transformer: str,
    work: Path,
    processes: SentenceTransformerTrainingArguments,
    note: Callable[[str], None] | None = None,
) -> Taught:
    """Train a cross-encoder from a trained transformer, and that transformer once more with it as a teacher.

    What does not help is not taken: on dev, a teacher that ranks candidates no better than the first model did, or a
    student that retrieves worse than before.

    Args:
        part: trains a job under a name in the work folder, or returns what an earlier call made of it.
        first_model: makes the model that finds candidates.
        transformer: the folder in the work folder of the one that was trained.
        processes: their number, for those of a distributed training.
    """
    settings = job.settings
    pairs = Pairs.from_judgments(train, threshold=positives_above(train, job, generous=True))
    found, read = work / FIRST, work / SECOND
    with processes.main_process_first(local=False):
        if not found.is_dir():
            qrels = Qrels.from_judgments(dev, threshold=job.threshold)
            _find(first_model(), pairs, qrels, found, seed=settings.seed)
    base = find_model(str(work / transformer))
    plain = {
        "cross_encoder": 0.0,
        "lexical": False,
        "rotate": False,
        "rotate_first": False,
        "base_share": 0.0,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "warmup": 0.1,
        "schedule": "linear",
    }
    of_teacher = settings.model_copy(update={**plain, "epochs": 2, "batch_size": 64, "learning_rate": 1e-4})
    teacher = part(TEACHER, Job(base, TEACHER, of_teacher, job.threshold, cache=job.cache, candidates=found))
    if teacher.after[RECALL] < teacher.base[RECALL]:
        _say(note, "the cross-encoder ranks dev's candidates no better than the model that found them; left out")
        return Taught(transformer, [teacher], read=False)
    with processes.main_process_first(local=False):
        if not read.is_dir():
            _say(note, f"the cross-encoder reads {3 * len(pairs.queries) * READ:,} pairs")
            _read(load_model(str(work / TEACHER)), pairs, found, read)
    of_student = settings.model_copy(
        update={
            **plain,
            "cross_encoder": settings.cross_encoder,
            "epochs": 1,
            "batch_size": max(2, settings.batch_size * 3 // 8),
            "learning_rate": 0.7 * settings.learning_rate,
        }
    )
    student = part(STUDENT, replace(job, base=base, settings=of_student, candidates=read))
    if student.regression:
        _say(note, "taught by the cross-encoder the transformer retrieves no better on dev; left as it was")
        return Taught(transformer, [teacher, student], read=True)
    return Taught(STUDENT, [teacher, student], read=True)


def _find(model: SentenceTransformer, pairs: Pairs, qrels: Qrels, folder: Path, *, seed: int) -> None:
    from nestling.training.cross_encoder import measured_rows

    queries = [qrels.queries[row] for row in measured_rows(qrels)]
    more = invented(pairs, seed=seed)
    with atomic.new_folder(folder) as temporary:
        Candidates.nearest(model, [*pairs.queries, *more], pairs.documents, MINED).save(temporary / "train.npz")
        atomic.write_json(temporary / INVENTED, more)
        Candidates.nearest(model, queries, qrels.documents, RERANKED).save(temporary / "dev.npz")


def _read(teacher: SentenceTransformer, pairs: Pairs, found: Path, folder: Path) -> None:
    from nestling.training.cross_encoder import read_by

    candidates = Candidates.load(found / "train.npz").first(READ)
    more = json.loads((found / INVENTED).read_text(encoding="utf-8"))
    with atomic.new_folder(folder) as temporary:
        read_by(teacher, candidates, [*pairs.queries, *more], pairs.documents).save(temporary / "train.npz")
        atomic.write_json(temporary / INVENTED, more)


def taught_table(
    train: Judgments, job: Job, *, transformer: str, table: str, work: Path, note: Callable[[str], None] | None = None
) -> str:
    """Train a table by the candidates that the cross-encoder read, and return its folder in the work folder.

    Where it does not help, that one's table is as it was.
    """
    from nestling.training.taught_table import teach_table

    folder = work / TAUGHT_TABLE
    if not folder.is_dir():
        _say(note, "the table is taught by the cross-encoder too")
        pairs = Pairs.from_judgments(train, threshold=job.threshold)
        more = json.loads((work / SECOND / INVENTED).read_text(encoding="utf-8"))
        model = load_model(str(work / table))
        teach_table(
            load_model(str(work / transformer)),
            model,
            [*pairs.queries, *more],
            pairs.documents,
            Candidates.load(work / SECOND / "train.npz"),
            seed=job.settings.seed,
        )
        with atomic.new_folder(folder) as temporary, no_bars():
            model.save_pretrained(str(temporary), create_model_card=False)
    return TAUGHT_TABLE


def _say(note: Callable[[str], None] | None, line: str) -> None:
    logger.info(line)
    if note:
        note(line)

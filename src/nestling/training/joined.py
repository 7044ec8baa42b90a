"""What follows a training of a transformer: weights of the base mixed in, a rotation, a table joined to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling import atomic
from nestling.errors import InputError
from nestling.evaluation.embed import embed
from nestling.evaluation.qrels import Qrels
from nestling.evaluation.rotate import add_rotation
from nestling.evaluation.turning import train_search_rotation
from nestling.judgments.table import Judgments
from nestling.models import ModelSource, load_model, save_model
from nestling.training.job import Job
from nestling.training.lexical import join, sample
from nestling.training.recipes import find_recipe, texts
from nestling.training.result import RECALL, SUMMARY, TrainingResult, prepare, read_result
from nestling.training.settings import TrainingSettings
from nestling.training.teaching import Parts, teach

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from nestling.training.callbacks import TrainingProgress

logger = logging.getLogger(__name__)

TRANSFORMER, TABLE = "transformer", "table"


def finish(folder: Path, train: Judgments, job: Job) -> None:
    """Do to a saved transformer, in place, what the job's settings want after its training."""
    if job.settings.base_share:
        mix(folder, job.base, job.settings.base_share)
    if job.settings.rotate:
        rotate(folder, train, job.matryoshka)


def mix(folder: Path, base: ModelSource, share: float) -> None:
    """Move a saved model's weights towards those of the base that it was trained from, in place.

    WiSE-FT (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv 2109.01903). On dev of 25,000 Home
    Depot titles, shares of 0, 0.1, 0.2, 0.3 and 0.5: recall@10 and MRR@10 of a `graded` transformer .852/.643,
    .856/.647, .855/.651, .858/.656 and .850/.653; joined with its table .860/.662, .864/.662, .864/.662, .862/.660 and
    .864/.659.

    Args:
        share: of the base, 0 to 1.
    """
    model = load_model(str(folder))
    before = load_model(base).state_dict()
    trained = model.state_dict()
    model.load_state_dict(
        {
            # A layer that the training added has nothing to go back to.
            name: value.lerp(before[name].to(value), share) if value.is_floating_point() and name in before else value
            for name, value in trained.items()
        }
    )
    save_model(model, folder)


def rotate(folder: Path, train: Judgments, dims: Sequence[int] = ()) -> None:
    """Rotate a saved model, in place, so that its prefixes `dims` rank more like the whole (turning.py)."""
    model = load_model(str(folder))
    queries, documents = texts(train)
    add_rotation(
        model,
        train_search_rotation(
            embed(model, sample(queries), kind="query"),
            embed(model, sample(documents), kind="document"),
            dims=dims,
            device=model.device,
        ),
    )
    save_model(model, folder)


def check_transformer(base: ModelSource) -> None:
    """Raise InputError where a base has no transformer to make a cross-encoder of, before anything is trained."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    if isinstance(load_model(base)[0], StaticEmbedding):
        raise InputError(f"model {base.name!r} is static; a cross-encoder needs a transformer")


def fit_parts(
    fit: Callable[..., TrainingResult],
    train: Judgments,
    dev: Judgments,
    job: Job,
    *,
    output: Path,
    work: Path,
    report: Callable[[TrainingProgress], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> TrainingResult:
    """Train the transformer of a job and what else its settings ask for, and make one model of them.

    Else is: a table distilled from its base, to be joined with it (lexical.py), and a cross-encoder that teaches it in
    a second training (teaching.py). Each is a training of its own in a folder of its own within `work`, so that a call
    after an interruption goes on within the one that was under way.

    Args:
        fit: trains one of them; as `trainer.fit`, and so is all else here.

    Returns:
        the transformer's first result, but for `after`, which is the whole's, and for seconds and memory, which count
        all trainings.
    """
    from nestling.training.dev import DevEvaluator
    from nestling.training.library import arguments_for

    def say(line: str) -> None:
        logger.info(line)
        if note:
            note(line)

    settings, taught = job.settings, find_recipe(job.recipe).is_taught(job)
    if taught:
        check_transformer(job.base)
    # For its processes alone: with several, one prepares and joins, and the others wait.
    processes = arguments_for(settings, "fp32", 1, work)
    with processes.main_process_first(local=False):
        prepare(work, f"{train.fingerprint} {dev.fingerprint} {job.fingerprint()}", keep=job.cache)

    def tell(progress: TrainingProgress) -> None:
        # Only the first transformer's figures on dev are the variant's, which a search would prune by.
        if report:
            report(replace(progress, dev=None))

    def part(name: str, each: Job) -> TrainingResult:
        folder, training = work / name, work / f"{name}.training"
        listener = report if name == TRANSFORMER else tell
        if folder.is_dir() and (training / SUMMARY).is_file():
            return read_result(training)
        say(f"the {name}:")
        fit(train, dev, each, output=folder, work=training, report=listener, note=note)
        # As its main process has it: what comes next depends on the figures, and must not differ between processes.
        with processes.main_process_first(local=False):
            return read_result(training)

    # The whole is rotated when it is joined.
    apart: dict[str, Any] = {"lexical": False, "cross_encoder": 0.0, "rotate": False}
    if settings.lexical:
        apart["rotate_first"] = False
    results = [part(TRANSFORMER, replace(job, settings=settings.model_copy(update=apart)))]
    full = int(load_model(str(work / TRANSFORMER)).get_embedding_dimension() or 0)
    dims = job.matryoshka or tuple(size for size in (full, full // 2, full // 4, full // 8) if size)
    if settings.lexical:
        # Made of the trained transformer the table is better by itself, and adds less to what the transformer knows.
        of_table = TrainingSettings(**{**find_recipe("static").defaults, "seed": settings.seed})
        results.append(part(TABLE, Job(job.base, "static", of_table, job.threshold, dims, job.weights, job.cache)))
    chosen = Parts(TRANSFORMER, TABLE if settings.lexical else None)

    # At full size alone nothing needs to be turned for prefixes.
    def whole(parts: Parts, dims: tuple[int, ...] = (full,)) -> SentenceTransformer:
        model = load_model(str(work / parts.transformer))
        return join(model, load_model(str(work / parts.table)), *texts(train), dims=dims) if parts.table else model

    if taught:
        chosen, more = teach(part, whole, chosen, train, dev, job, work=work, processes=processes, say=say)
        results += more
    with processes.main_process_first(local=False):
        if processes.process_index == 0:
            with atomic.new_folder(output) as temporary:
                save_model(whole(chosen, dims), temporary)
                if settings.rotate and not settings.lexical:
                    rotate(temporary, train, job.matryoshka)
    evaluator = DevEvaluator(Qrels.from_judgments(dev, threshold=job.threshold), job.matryoshka or (full,))
    result = replace(
        results[0],
        after=evaluator(load_model(str(output))),
        seconds=sum(each.seconds for each in results),
        peak_memory=max(each.peak_memory for each in results),
    )
    if settings.lexical:
        transformer, table = (each.after[RECALL] for each in results[:2])
        say(
            f"joined: dev recall@10 of the transformer {transformer:.4f}, of the table {table:.4f}, "
            f"{'of both, taught,' if chosen.transformer != TRANSFORMER else 'of both'} {result.after[RECALL]:.4f}"
        )
    if result.regression:
        logger.warning("%s: %s", output.name, result.told())
    if processes.process_index == 0:
        atomic.write_json(work / SUMMARY, result.as_dict())
    return result

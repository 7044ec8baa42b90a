"""Steps after the training of a transformer: base weights mixed in, a rotation, a table joined to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nestling import atomic
from nestling.config.training import TrainingSettings
from nestling.errors import InputError
from nestling.evaluation.qrels import Qrels
from nestling.judgments.table import Judgments
from nestling.models.load import ModelSource, load_model, save_model
from nestling.models.torch_encoder import embed
from nestling.retrieval.rotation import add_rotation, fit_search_rotation, rotated
from nestling.retrieval.trained_rotation import train_search_rotation
from nestling.retrieval.vectors import truncate
from nestling.training.distill.distillation import TRANSFORMER, teach
from nestling.training.recipes.registry import find_recipe, texts
from nestling.training.result import RECALL, SUMMARY, TrainingResult, prepare, read_result
from nestling.training.spec import Job
from nestling.training.steps.concat_static import SHARES, reduced, sample, scale_for, scaled, side_by_side
from nestling.training.steps.guard import Figures, Guard, choose, shown

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from nestling.progress import TrainingProgress
    from nestling.training.dev import DevEvaluator, Vectors

logger = logging.getLogger(__name__)

TABLE = "table"
TABLE_STEP = "the table of word pieces"
SHARES_OF_START = (0.5, 0.8)
"""Of the weights that a training began from, tried where dev is lower after it than before."""


def finish(folder: Path, start: Path, train: Judgments, job: Job, evaluator: DevEvaluator, guard: Guard) -> None:
    """Do to a saved model, in place, what the job's settings want after its training and dev is not lower for.

    Args:
        start: the model before its first step.
        evaluator: on dev, at the sizes that the variant is judged by.
    """
    transformer = find_recipe(job.recipe).trains_transformer
    merge(folder, start, job, evaluator, guard, share=job.settings.base_share if transformer else 0.0)
    if job.settings.rotate and transformer:
        model, _ = assemble(load_model(str(folder)), None, train, job, evaluator, guard)
        save_model(model, folder)


def merge(folder: Path, start: Path, job: Job, evaluator: DevEvaluator, guard: Guard, *, share: float) -> None:
    """Mix into a saved model, in place, as much of the weights that its training began from as dev asks for.

    That is `share`, or nothing where dev is lower for it. Where the model is then still lower on dev than before its
    training, it is the best of `SHARES_OF_START`, and all of them, the training left out, where dev is lower with any
    of those. Trainings by the library's trainer or with the last weights kept stay as they are.
    """
    figures: dict[float, Figures] = {}

    def measured(share: float) -> Figures:
        if share not in figures:
            figures[share] = evaluator.per_query(mixed(folder, start, share))
        return figures[share]

    if share and guard.keep(f"{share:.0%} of the base's weights", [measured(share)], measured(0.0)) is None:
        share = 0.0
    trained = share
    if job.settings.fast and job.settings.keep == "best" and choose([measured(share)], measured(1.0)) is None:
        more = [each for each in SHARES_OF_START if each > share]
        place = choose([measured(each) for each in more], measured(1.0))
        share = 1.0 if place is None else more[place]
        guard.say_left_out(
            f"{share:.0%} of what the training changed: dev recall@10 {shown(measured(1.0))} before it, "
            f"{shown(measured(trained))} after it" + (f", {shown(measured(share))} as kept" if share < 1 else "")
        )
    if share:
        save_model(mixed(folder, start, share), folder)


def mixed(folder: Path, start: Path, share: float) -> SentenceTransformer:
    """Return a saved model with its weights moved towards those that its training began from.

    WiSE-FT (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv 2109.01903). On dev of 25,000 Home
    Depot titles, shares of 0, 0.1, 0.2, 0.3 and 0.5: recall@10 and MRR@10 of a `graded` transformer .852/.643,
    .856/.647, .855/.651, .858/.656 and .850/.653; joined with its table .860/.662, .864/.662, .864/.662, .862/.660 and
    .864/.659.

    Args:
        start: a model of the same layers.
        share: of its weights, 0 to 1.
    """
    if share == 1:
        return load_model(str(start))
    model = load_model(str(folder))
    if share:
        before = load_model(str(start)).state_dict()
        model.load_state_dict(
            {
                name: value.lerp(before[name].to(value), share) if value.is_floating_point() else value
                for name, value in model.state_dict().items()
            }
        )
    return model


def assemble(
    model: SentenceTransformer,
    table: SentenceTransformer | None,
    train: Judgments,
    job: Job,
    evaluator: DevEvaluator,
    guard: Guard,
    *,
    dims: Sequence[int] = (),
) -> tuple[SentenceTransformer, Figures]:
    """Rotate a transformer if the settings want it, join it with a table if there is one, where dev is not lower.

    Args:
        model: its modules are taken over.
        dims: the sizes to judge and to rotate for, the full one first; by default the job's, else full, 1/2, 1/4, 1/8.

    Returns:
        the model and its figures on dev at these sizes.
    """
    full = int(model.get_embedding_dimension() or 0)
    dims = dims or _sizes(full, job)
    rotates = job.settings.rotate and len(dims) > 1
    both = model if table is None else side_by_side(model, table)
    dev = evaluator.vectors(both)
    alone = _truncated(dev, full)
    plain = figures = evaluator.of_vectors(alone, dims)
    if table is None and not rotates:
        return model, figures
    queries, documents = texts(train)
    fitted = embed(both, sample(queries), kind="query"), embed(both, sample(documents), kind="document")
    if rotates:
        turn = train_search_rotation(*_truncated(fitted, full), dims=dims, device=model.device)
        turned = evaluator.of_vectors(_rotated(alone, turn), dims)
        # A rotation keeps the cosines at full size, but for rounding.
        turned[0] = plain[0]
        if choose([turned], plain) is not None:
            figures = turned
    if table is not None:
        scales = [scale_for(fitted[1], share) for share in SHARES]
        options = []
        for scale in scales:
            reduction = fit_search_rotation(*_scaled(fitted, scale))[:, :full]
            options.append(evaluator.of_vectors(_rotated(_scaled(dev, scale), reduction)))
        place = guard.keep(TABLE_STEP, options, figures[:1])
        if place is not None:
            weighted = _scaled(fitted, scales[place])
            reduction = train_search_rotation(*weighted, size=full, dims=dims, device=model.device)
            joined = evaluator.of_vectors(_rotated(_scaled(dev, scales[place]), reduction), dims)
            if guard.keep(TABLE_STEP, [joined], figures) is not None:
                return reduced(both, scales[place], reduction), joined
    if rotates and guard.keep("the rotation", [turned], plain) is not None:
        add_rotation(model, turn)
    return model, figures


def _sizes(full: int, job: Job) -> tuple[int, ...]:
    return job.matryoshka or tuple(size for size in (full, full // 2, full // 4, full // 8) if size)


def _truncated(vectors: Vectors, dim: int) -> Vectors:
    return truncate(vectors[0], dim), truncate(vectors[1], dim)


def _scaled(vectors: Vectors, scale: float) -> Vectors:
    return scaled(vectors[0], scale), scaled(vectors[1], scale)


def _rotated(vectors: Vectors, rotation: NDArray[np.float32]) -> Vectors:
    return rotated(vectors[0], rotation), rotated(vectors[1], rotation)


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
    from nestling.training.trainer_adapter import arguments_for

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

    results: dict[str, TrainingResult] = {}

    def part(name: str, each: Job) -> TrainingResult:
        folder, training = work / name, work / f"{name}.training"
        listener = report if name == TRANSFORMER else tell
        if not (folder.is_dir() and (training / SUMMARY).is_file()):
            say(f"the {name}:")
            fit(train, dev, each, output=folder, work=training, report=listener, note=note)
        # As its main process has it: what comes next depends on the figures, and must not differ between processes.
        with processes.main_process_first(local=False):
            results[name] = read_result(training)
        return results[name]

    # The whole is rotated when it is joined.
    apart: dict[str, Any] = {"lexical": False, "cross_encoder": 0.0, "rotate": False}
    if settings.lexical:
        apart["rotate_first"] = False
    part(TRANSFORMER, replace(job, settings=settings.model_copy(update=apart)))
    full = int(load_model(str(work / TRANSFORMER)).get_embedding_dimension() or 0)
    if settings.lexical:
        # Made of the trained transformer the table is better by itself, and adds less to what the transformer knows.
        of_table = TrainingSettings(**{**find_recipe("static").defaults, "seed": settings.seed})
        dims = _sizes(full, job)
        part(TABLE, Job(job.base, "static", of_table, job.threshold, dims, job.weights, job.cache))
    evaluator = DevEvaluator(Qrels.from_judgments(dev, threshold=job.threshold), job.matryoshka)
    guard = Guard(say)

    def whole(transformer: str, guard: Guard, dims: tuple[int, ...] = ()) -> tuple[SentenceTransformer, Figures]:
        model = load_model(str(work / transformer))
        table = load_model(str(work / TABLE)) if settings.lexical else None
        return assemble(model, table, train, job, evaluator, guard, dims=dims)

    # At full size alone nothing needs to be turned for prefixes.
    def at_full_size(transformer: str) -> tuple[SentenceTransformer, Figures]:
        return whole(transformer, Guard(), (full,))

    chosen = TRANSFORMER
    if taught:
        chosen = teach(part, at_full_size, train, dev, job, guard, work=work, processes=processes)
    with processes.main_process_first(local=False):
        if processes.process_index == 0:
            with atomic.new_folder(output) as temporary:
                model, _ = whole(chosen, guard)
                save_model(model, temporary)
            joined = settings.lexical and not any(line.startswith(TABLE_STEP) for line in guard.left_out)
            parts = dict.fromkeys((TRANSFORMER, chosen, *((TABLE,) if joined else ())))
            of_parts = [f"the {name}: {line}" for name in parts for line in results[name].left_out]
            result = replace(
                results[TRANSFORMER],
                after=evaluator(load_model(str(output))),
                seconds=sum(each.seconds for each in results.values()),
                peak_memory=max(each.peak_memory for each in results.values()),
                left_out=[*of_parts, *guard.left_out],
            )
            if joined:
                transformer, table = (results[name].after[RECALL] for name in (TRANSFORMER, TABLE))
                say(
                    f"joined: dev recall@10 of the transformer {transformer:.4f}, of the table {table:.4f}, "
                    f"{'of both, taught,' if chosen != TRANSFORMER else 'of both'} {result.after[RECALL]:.4f}"
                )
            if result.regression:
                logger.warning("%s: %s", output.name, result.told())
            atomic.write_json(work / SUMMARY, result.as_dict())
    return read_result(work)

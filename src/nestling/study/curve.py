"""The learning curve: one recipe on growing shares of the training data, and whether more judgments would help."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
from scipy import stats

from nestling import atomic
from nestling.config.experiment import Experiment
from nestling.config.fingerprint import fingerprint
from nestling.config.run_folder import RunFolder
from nestling.environment import PICTURES, needed
from nestling.errors import InputError
from nestling.evaluation.results import write_table
from nestling.judgments.table import Judgments
from nestling.progress import Observer
from nestling.study.log import logged_to
from nestling.study.train import fit_watched
from nestling.study.tune.context import Context, prepare

logger = logging.getLogger(__name__)

SHARES = (0.1, 0.25, 0.5, 1.0)
MEASURES = ("recall@10", "mrr@10")
FLAT = 0.005
"""A change of recall@10 by a doubling that is smaller than this is within what a change of seed brings."""


@dataclass(frozen=True)
class Point:
    """One training on one share of the training data: its size, and dev figures by measure of the base and after."""

    share: float
    seed: int
    records: int
    queries: int
    before: dict[str, float]
    after: dict[str, float]


@dataclass(frozen=True)
class Curve:
    """A finished learning curve, as points and as a long table, with the change of recall@10 over the last doubling."""

    variant: str
    points: tuple[Point, ...]
    results: pl.DataFrame
    before: dict[str, float]
    slope: float
    verdict: str
    folder: Path
    files: tuple[Path, ...]


def curve(
    experiment: Experiment,
    *,
    variant: str | None = None,
    shares: Sequence[float] = SHARES,
    seeds: int = 1,
    runs: Path = Path("runs"),
    observer: Observer | None = None,
) -> Curve:
    """Train a variant on growing shares of the run's train split and measure each on dev.

    Epochs stay as they are, so that a tenth of the data is a tenth of the steps. Each finished share is kept: the same
    call goes on after an interruption, and shares and seeds may be added. The test split is not looked at. The variant
    is by default the first that is trained; each of the seeds is a training of every share, on a sample of its own.
    """
    needed("nestling curve", *PICTURES)
    wrong = [share for share in shares if not 0 < share <= 1]
    if wrong:
        raise InputError(f"a share of the training data lies above 0 and up to 1, not at {wrong[0]:g}")
    if len(set(shares)) < 2:
        raise InputError("a curve needs two shares or more, as in 0.1,0.25,0.5,1")
    if seeds < 1:
        raise InputError(f"a curve needs 1 seed or more, not {seeds}")
    observer = observer or Observer()
    context = prepare(experiment, variant, runs=runs, observer=observer)
    with RunFolder(context.folder.curve).locked(), logged_to(context.folder.log):
        points = [_point(context, share, seed, observer) for share in sorted(set(shares)) for seed in range(seeds)]
        return _write(context, tuple(points))


def nested_sample(train: Judgments, share: float, *, seed: int) -> Judgments:
    """Return random whole queries that hold `share` of the records or just more; larger shares hold the smaller."""
    keys = train.query_keys
    distinct = keys.unique().sort()
    order = np.random.default_rng(seed).permutation(len(distinct))
    rank = keys.replace_strict(distinct.gather(order), np.arange(len(distinct)), return_dtype=pl.Int64).to_numpy()
    records = np.cumsum(np.bincount(rank, minlength=len(distinct)))
    # A hair less, so that rounding in share * records asks for no query more.
    queries = int(np.searchsorted(records, share * len(train) - 1e-6)) + 1
    return train.take(np.flatnonzero(rank < queries))


def slope_per_doubling(records: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Return the change of a measure for twice the records, and its standard error: least squares over log2."""
    if len(set(records)) < 2:
        return 0.0, 0.0
    line = stats.linregress(np.log2(records), values)
    return float(line.slope), float(line.stderr)


def last_doubling(points: Sequence[Point]) -> list[Point]:
    """Return the points from half the most records on, or those of the two largest shares where that is one share."""
    most = max(point.records for point in points)
    shares = {point.share for point in points if 2 * point.records >= most}
    if len(shares) < 2:
        shares = set(sorted({point.share for point in points})[-2:])
    return [point for point in points if point.share in shares]


def verdict(points: Sequence[Point]) -> tuple[float, str]:
    """Return the slope of recall@10 over the last doubling, and the conclusion; what seeds explain counts as flat."""
    chosen = last_doubling(points)
    records, values = [p.records for p in chosen], [p.after["recall@10"] for p in chosen]
    slope, error = slope_per_doubling(records, values)
    flat = max(FLAT, 2 * error)
    facts = f"From {min(records):,} to {max(records):,} training records recall@10 on dev changes by {slope:+.4f}"
    if slope >= flat:
        so = "more judgments would help"
    elif slope <= -flat:
        so = "more judgments of this kind do harm under this recipe: look at its settings, or at the newer judgments"
    else:
        so = f"that is flat (within {flat:.2g}), so more judgments of this kind would bring little"
    return slope, f"{facts} for each doubling: {so}."


def _point(context: Context, share: float, seed: int, observer: Observer) -> Point:
    """Read a share's point where an earlier call left it, else train on the share."""
    folder, settings = context.folder.curve, context.settings
    spec = context.spec(settings.model_copy(update={"seed": settings.seed + seed}))
    made_from = fingerprint([context.split_print, context.variant.name, spec.fingerprint(), share, seed])
    title = f"share {share:g}" + (f", seed {seed}" if seed else "")
    work = folder / f"share-{share:g}-seed-{seed}"
    path = folder / f"{work.name}.json"
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known.pop("made_from", None) != made_from:
            raise InputError(
                f"{path} was made from other data or settings; choose another --name, or remove {folder} first"
            )
        observer.stage(title, "done before")
        return Point(**known)
    split, sample = context.split, nested_sample(context.split.train, share, seed=seed)
    observer.stage(title, f"{len(sample):,} records")
    try:
        result = fit_watched(
            title, sample, split.dev, spec, output=work / "model", work=work / "training", observer=observer
        )
    except InputError as error:
        raise InputError(f"{title} ({len(sample):,} records): {error}") from error
    before, after = ({m: figures[f"dev_{m}"] for m in MEASURES} for figures in (result.before, result.after))
    point = Point(share, seed, len(sample), sample.query_keys.n_unique(), before, after)
    atomic.write_json(path, {"made_from": made_from, **asdict(point)})
    shutil.rmtree(work, ignore_errors=True)
    observer.note(f"dev recall@10 {before['recall@10']:.4f} -> {after['recall@10']:.4f}")
    logger.info("curve, %s: dev recall@10 %.4f with %d records", title, after["recall@10"], len(sample))
    return point


def _write(context: Context, points: tuple[Point, ...]) -> Curve:
    from nestling.report.charts import save, short_source
    from nestling.study.tune.charts import learning_curve

    folder, variant, before = context.folder.curve, context.variant.name, points[0].before
    rows = [(p.share, p.seed, p.records, p.queries, *figure) for p in points for figure in p.after.items()]
    results = pl.DataFrame(rows, schema=["share", "seed", "records", "queries", "measure", "value"], orient="row")
    slope, sentence = verdict(points)
    files = [folder / "curve.json", folder / "curve.parquet"]
    value = {"variant": variant, "before": before, "points": [asdict(point) for point in points]}
    atomic.write_json(files[0], {**value, "slope": slope, "verdict": sentence})
    write_table(files[1], results)
    queries = context.split.dev.query_keys.n_unique()
    source = short_source(context.source)
    subtitle = f"{source}: {variant}, {queries:,} dev queries; last doubling {slope:+.4f} recall@10"
    files.append(save(learning_curve(results, before=before, subtitle=subtitle), folder / "curve")[0])
    logger.info("curve of %s: %s", variant, sentence)
    return Curve(variant, points, results, before, slope, sentence, folder, tuple(files))

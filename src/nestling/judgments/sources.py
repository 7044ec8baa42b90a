"""From where judgments come: a file, a folder, a hub data set, the Kaggle layout or the generator, as one table."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from nestling.config.names import MAX_UNPACKED
from nestling.errors import InputError, first_line
from nestling.judgments import files, kaggle
from nestling.judgments.columns import RECORD_NUMBER, Raw, as_names, listed, nearest
from nestling.judgments.table import COLUMNS, Judgments

PRESETS = ("toolshed", "home-depot")
RECORDS = 25_000
HOME_DEPOT = "bstds/home_depot"
ADVICE = (
    f"give {' or '.join(PRESETS)}, the path of a file ({', '.join(files.FORMATS)}), or a hub data set as hf:owner/name"
)

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def load_judgments(
    source: str | Path,
    *,
    query: str | None = None,
    document: str | Sequence[str] | None = None,
    score: str | None = None,
    query_id: str | None = None,
    document_id: str | None = None,
    scale: tuple[float, float] | None = None,
    split: str | None = None,
    revision: str | None = None,
    records: int | None = None,
    seed: int = 0,
    max_unpacked: int = MAX_UNPACKED,
) -> Judgments:
    """Read judged (query, document) pairs from wherever they are, and clean them.

    Args:
        source: `toolshed`, the generated catalogue; `home-depot`, the hub's copy of that competition, or
            `home-depot:PATH`, the folder, zip or train.csv of Kaggle; a file (.csv .tsv .parquet .jsonl .ndjson, each
            also as .gz or .zip); a folder that `datasets` reads; `owner/name` or `hf:owner/name`, a hub data set.
            Code that a data set brings along is never run.
        query: the column with the query; by default, as for all columns, one with a usual name.
        document: the column with the document's text, or several: joined by newlines in this order, empty ones left
            out. They, and all other columns but record numbers, stay as document fields.
        score: the column with the score. Where it is not given and no column has a usual name, every pair counts as
            relevant.
        query_id, document_id: the columns with the ids; derived from the texts where there are none.
        scale: lowest and highest score that a rater can give; by default the source's own, or those seen.
        split: the split of a hub data set; by default its only one, or `train`.
        revision: the branch, tag or commit of a hub data set.
        records: how many records to generate, 25,000 by default. It and `seed` concern `toolshed` only; take a part
            of other sources with `Judgments.sample`.
        max_unpacked: MiB that a packed file may unpack to.
    """
    given = {"query": query, "document": document, "score": score, "query_id": query_id, "document_id": document_id}
    roles = {role: as_names(names) for role, names in given.items()}
    raw = read_raw(source, split, revision, max_unpacked, records=records, seed=seed)
    if source == "toolshed" and roles["document"] and "document" not in roles["document"]:
        # The generated catalogue's document is its title, which is a field of its own.
        raw = replace(raw, frame=raw.frame.drop("document"))
    chosen = raw.choose(roles, "score", "query_id", "document_id")
    texts = chosen.pop("document")
    columns = {role: raw.text(*names) for role, names in chosen.items() if names}
    columns["document"] = raw.joined(texts)
    taken = {name for names in chosen.values() for name in names}
    notes = raw.notes
    if not chosen["score"]:
        scale = scale or raw.scale or (0.0, 1.0)
        columns["score"] = pl.Series([scale[1]], dtype=pl.Float64).new_from_index(0, raw.frame.height)
        notes = (*notes, _no_score(raw.frame.select(pl.exclude(*taken, *texts))))
    elif (scores := raw.frame[chosen["score"][0]]).dtype.is_numeric() or scores.dtype == pl.Boolean:
        columns["score"] = scores
    if texts == ("document",):
        taken.add("document")
    return Judgments.from_frame(
        raw.table(columns, raw.fields(taken, always=texts), COLUMNS),
        scale=scale or raw.scale,
        source=raw.name,
        encoding=raw.encoding,
        score_name="".join(chosen["score"]) or "score",
        notes=notes,
    )


def _no_score(others: pl.DataFrame) -> str:
    """Say that there is no score column, and which of the columns that nothing else is taken from hold numbers."""
    numbers = [
        name
        for name in others.columns
        if not RECORD_NUMBER.fullmatch(name)
        and not others[name].dtype.is_nested()
        and others[name].alias("number").cast(pl.Float64, strict=False).is_not_null().all()
    ]
    hint = f"; if one of these holds scores, give it with --score: {listed(numbers)}" if numbers else ""
    return f"no score column: every pair counts as relevant{hint}"


def read_raw(
    source: str | Path,
    split: str | None,
    revision: str | None,
    max_unpacked: int,
    *,
    records: int | None = None,
    seed: int = 0,
) -> Raw:
    """Read a source's table as it is; see `load_judgments`."""
    text = str(source)
    if not text.strip():
        raise InputError(f"no source given; {ADVICE}")
    if source == "toolshed":
        _refuse_hub_options(text, split=split, revision=revision)
        from nestling.judgments import toolshed

        generated = toolshed.generate(RECORDS if records is None else records, seed=seed)
        return Raw(generated.frame, generated.source, scale=generated.scale)
    if source == "home-depot":
        aliases = {"title": "name", "product_title": "name", "product_description": "description"}
        return Raw(_hub(HOME_DEPOT, split, revision), text, scale=kaggle.SCALE, aliases=aliases)
    if isinstance(source, str) and text.startswith("hf:"):
        return Raw(_hub(text.removeprefix("hf:"), split, revision), text)
    preset = isinstance(source, str) and text.startswith("home-depot:")
    path = Path(os.path.expanduser(text.removeprefix("home-depot:") if preset else text))  # noqa: PTH111
    if not _exists(path, text):
        if isinstance(source, str) and not preset:
            if _HUB_NAME.fullmatch(text) and not re.search(r"\.[a-z]{2,8}(\.gz|\.zip)?$", text, re.IGNORECASE):
                return Raw(_hub(text, split, revision), text)
            if not re.search(r"[./\\~]", text):
                raise InputError(f"no such source: {text!r}{nearest(text, PRESETS)}; {ADVICE}")
        raise InputError(f"no such file: {text}; check the spelling, or {ADVICE}")
    raw = kaggle.load(path, text, max_unpacked)
    if raw is None and preset:
        columns = ", ".join(kaggle.PAIRS)
        raise InputError(f"{text}: holds no train.csv with the columns {columns}; give the folder or zip that does")
    if raw is None and path.is_dir():
        _refuse_hub_options(text, revision=revision)
        return Raw(_datasets(str(path), text, split, None, "give the path of a file in it"), text)
    _refuse_hub_options(text, revision=revision, split=split)
    return raw or files.parse(path.name, files.read_bytes(path, text), text, max_unpacked=max_unpacked)


def _refuse_hub_options(source: str, **options: str | None) -> None:
    for option, value in options.items():
        if value is not None:
            raise InputError(f"{source}: has no {option} {value!r}; leave --{option} out, it is for hub data sets")


def _exists(path: Path, source: str) -> bool:
    try:
        return path.exists()
    except PermissionError as error:
        raise InputError(f"{source}: permission denied; make its folder readable for this user") from error
    except OSError:
        return False


def _hub(name: str, split: str | None, revision: str | None) -> pl.DataFrame:
    import datasets

    where = f"hub data set {name}" + (f" at {revision}" if revision else "")
    if not re.fullmatch(rf"{_HUB_NAME.pattern}|[\w-]+", name):
        raise InputError(f"{where}: is not a name that the hub has; give hf:owner/name")
    if datasets.config.HF_HUB_OFFLINE:
        return _datasets(name, where, split, revision, "with HF_HUB_OFFLINE set it must be in the cache; else unset it")
    _ask_hub(name, where, revision)
    return _datasets(name, where, split, revision, "check its page on the hub, or give it as a Parquet file")


def _ask_hub(name: str, where: str, revision: str | None) -> None:
    """Ask once whether the hub has the data set, as `datasets` would go on asking a dead line for half a minute."""
    from huggingface_hub import HfApi, errors

    try:
        HfApi().dataset_info(name, revision=revision, timeout=10)
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{where}: it has no such revision; give --revision one of its branches or tags") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        why = "not on the hub, or private; check the name (no file or folder here has it), or run `hf auth login`"
        raise InputError(f"{where}: {why}") from error
    except errors.HfHubHTTPError as error:
        raise InputError(f"{where}: the hub answers {first_line(error)[:200]}; try later, or give a file") from error
    except Exception as error:  # the HTTP client's own, of a class that differs with the hub library's version
        why = f"the hub cannot be reached ({first_line(error)[:200]})"
        raise InputError(f"{where}: {why}; give a file, or set HF_HUB_OFFLINE=1 to use a copy in the cache") from error


def _datasets(name: str, where: str, split: str | None, revision: str | None, advice: str) -> pl.DataFrame:
    import datasets

    try:
        if any((Path(name) / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, revision=revision)
    except Exception as error:  # of a dozen unrelated classes
        raise InputError(f"{where}: cannot be loaded ({first_line(error)[:200]}); {advice}") from error
    if isinstance(loaded, datasets.Dataset):
        loaded = {split or "train": loaded}
    chosen = split or (next(iter(loaded)) if len(loaded) == 1 else "train")
    if chosen not in loaded:
        raise InputError(f"{where}: has no split {chosen!r}; give --split one of: {listed(loaded)}")
    frame = loaded[chosen].to_polars()
    assert isinstance(frame, pl.DataFrame)
    return frame

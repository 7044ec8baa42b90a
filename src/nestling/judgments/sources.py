"""From where judgments come: a file, a folder, a hub data set, the Kaggle layout or the generator, as one table."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import polars as pl

from nestling.config.names import MAX_UNPACKED
from nestling.errors import InputError, first_line
from nestling.judgments import files, kaggle
from nestling.judgments.identity import VISIBLE
from nestling.judgments.table import COLUMNS, Judgments

PRESETS = ("toolshed", "home-depot")
RECORDS = 25_000
HOME_DEPOT = "bstds/home_depot"

KNOWN = {
    "query": "query search_term search_query search_terms anchor question keyword keywords query_text",
    "document": "document title product_title name product_name passage text positive document_text product content "
    "body answer",
    "score": "score relevance label rating grade gain relevance_score similarity judgment judgement",
    "query_id": "query_id queryid qid",
    "document_id": "document_id documentid doc_id docid product_uid product_id uid pid entity_id corpus_id item_id sku",
}
OPTION = {role: "--" + role.replace("_", "-") for role in KNOWN}
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_RECORD_NUMBER = re.compile(r"id|index|level_0|__index_level_\d+__|unnamed: \d+|", re.IGNORECASE)


Roles: TypeAlias = Mapping[str, tuple[str, ...]]
"""Role -> the columns that have it: several of "document", one of any other; none where a usual name is looked for."""

_KAGGLE = {
    "query": ("search_term",),
    "document": ("product_title",),
    "score": ("relevance",),
    "document_id": ("product_uid",),
}


@dataclass(frozen=True)
class Raw:
    """A source's table as read, and what the source itself knows of it."""

    frame: pl.DataFrame
    name: str
    encoding: str | None = None
    scale: tuple[float, float] | None = None
    roles: Roles = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def text(self, column: str) -> pl.Series:
        """Return a column as strings, and nothing as the empty string; refuse bytes that are no UTF-8."""
        values = self.frame[column]
        if values.dtype != pl.Binary:
            return as_text(values)
        try:
            return as_text(values.alias("text").cast(pl.String))
        except pl.exceptions.PolarsError:
            sound = [value is None or value.decode("utf-8", "ignore").encode() == value for value in values]
            where = f"row {sound.index(False) + 1}, column {files.listed([column])!r}"
            what = "holds bytes that are no UTF-8 text; write it as strings, or name another column"
            raise InputError(f"{self.name}, {where}: {what}") from None

    def columns(self, option: str, names: Iterable[str]) -> tuple[str, ...]:
        """Return columns as the table itself calls them; `option` of the command line names them in messages.

        Raises:
            InputError: there is no such column.
        """
        there = self.frame.columns
        names = tuple(self.aliases.get(name, name) if name not in there else name for name in names)
        for name in names:
            if name not in there:
                hint = f" ({self.absent[name]})" if name in self.absent else nearest(name, there)
                what = f"no column {files.listed([name])!r}{hint}"
                raise InputError(f"{self.name}: {what}; give {option} one of: {files.listed(there)}")
        return names

    def choose(self, wanted: Roles, *optional: str) -> dict[str, tuple[str, ...]]:
        """Return the columns of roles: those asked for, else as the source has it, else one with a usual name.

        Raises:
            InputError: there is no such column, or none to be found for a role that is not `optional`.
        """
        there = self.frame.columns
        chosen = {role: self.columns(OPTION[role], wanted[role] or self.roles.get(role, ())) for role in wanted}
        for role in chosen:
            taken = {name for names in chosen.values() for name in names}
            chosen[role] = chosen[role] or usual(role, [name for name in there if name not in taken])
            if not chosen[role] and role not in optional:
                what = f"cannot tell which column is the {role}"
                raise InputError(f"{self.name}: {what}; give {OPTION[role]} one of: {files.listed(there)}")
        return chosen

    def fields(self, taken: Container[str], always: Container[str] = ()) -> list[str]:
        """Return the columns beside those taken that are neither record numbers nor bytes."""
        return [
            name
            for name, kind in self.frame.schema.items()
            if name not in taken and (name in always or not (_RECORD_NUMBER.fullmatch(name) or "Binary" in str(kind)))
        ]


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
        query_id: the column with the query's id; derived from the text where there is none.
        document_id: the column with the document's id; derived from the text where there is none.
        scale: lowest and highest score that a rater can give; by default the source's own, or those seen.
        split: the split of a hub data set; by default its only one, or `train`.
        revision: the branch, tag or commit of a hub data set.
        records: how many records to generate, 25,000 by default. It and `seed` concern `toolshed` only; take a part
            of other sources with `Judgments.sample`.
        seed: the generator's seed.
        max_unpacked: MiB that a packed file may unpack to.

    Raises:
        InputError: the source is not there, cannot be read, or lacks a column; or a score is not a number.
    """
    given = {"query": query, "document": document, "score": score, "query_id": query_id, "document_id": document_id}
    wanted = {role: as_names(names) for role, names in given.items()}
    raw = read_raw(source, split, revision, max_unpacked, records=records, seed=seed)
    if source == "toolshed" and wanted["document"] and "document" not in wanted["document"]:
        # The generated catalogue's document is its title, which is a field of its own.
        raw = replace(raw, frame=raw.frame.drop("document"))
    return _judgments(raw, wanted, scale)


def as_names(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return a name or several, each once."""
    return (given,) if isinstance(given, str) else tuple(dict.fromkeys(given or ()))


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
        raise InputError(f"no source given; give {_what_to_give()}")
    if source == "toolshed":
        _only_on_the_hub(text, split=split, revision=revision)
        from nestling.judgments import toolshed

        generated = toolshed.generate(RECORDS if records is None else records, seed=seed)
        return Raw(generated.frame, generated.source, scale=generated.scale)
    if source == "home-depot":
        frame = _hub(HOME_DEPOT, split, revision)
        aliases = {"title": "name", "product_title": "name", "product_description": "description"}
        return Raw(frame, text, scale=kaggle.SCALE, roles={"document": ("name",)}, aliases=aliases)
    if isinstance(source, str) and text.startswith("hf:"):
        return Raw(_hub(text.removeprefix("hf:"), split, revision), text)
    preset = isinstance(source, str) and text.startswith("home-depot:")
    path = Path(text.removeprefix("home-depot:")) if preset else Path(source)
    with contextlib.suppress(RuntimeError):  # ~name, with no user of that name
        path = path.expanduser()
    if not _exists(path, text):
        if isinstance(source, str) and not preset:
            if _HUB_NAME.fullmatch(text) and not re.search(r"\.[a-z]{2,8}(\.gz|\.zip)?$", text, re.IGNORECASE):
                return Raw(_hub(text, split, revision), text)
            if not re.search(r"[./\\~]", text):
                raise InputError(f"no such source: {text!r}{nearest(text, PRESETS)}; give {_what_to_give()}")
        raise InputError(f"no such file: {text}; check the spelling, or give {_what_to_give()}")
    table = kaggle.load(path, text, max_unpacked)
    if table is None and preset:
        columns = ", ".join(kaggle.PAIRS)
        raise InputError(f"{text}: holds no train.csv with the columns {columns}; give the folder or zip that does")
    _only_on_the_hub(text, revision=revision, split=None if table is None and path.is_dir() else split)
    if table is None and path.is_dir():
        return Raw(_datasets(str(path), text, split, None, "give the path of a file in it"), text)
    if table is None:
        table = files.read_table(path, text, max_unpacked=max_unpacked)
        return Raw(table.frame, text, table.encoding, notes=table.notes)
    return Raw(table.frame, text, table.encoding, kaggle.SCALE, _KAGGLE, kaggle.ALIASES, kaggle.ABSENT, table.notes)


def _only_on_the_hub(source: str, **options: str | None) -> None:
    for option, value in options.items():
        if value is not None:
            raise InputError(f"{source}: has no {option} {value!r}; leave --{option} out, it is for hub data sets")


def _what_to_give() -> str:
    return (
        f"{' or '.join(PRESETS)}, the path of a file ({', '.join(files.FORMATS)}), or a hub data set as hf:owner/name"
    )


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
        raise InputError(f"{where}: has no split {chosen!r}; give --split one of: {files.listed(loaded)}")
    frame = loaded[chosen].to_polars()
    assert isinstance(frame, pl.DataFrame)
    return frame


def _judgments(raw: Raw, wanted: Roles, scale: tuple[float, float] | None) -> Judgments:
    chosen = raw.choose(wanted, "score", "query_id", "document_id")
    document = chosen.pop("document")
    columns = {role: raw.text(*names) for role, names in chosen.items() if names}
    for name in chosen["score"]:
        if raw.frame[name].dtype.is_numeric() or raw.frame[name].dtype == pl.Boolean:
            columns["score"] = raw.frame[name]
    columns["document"] = joined([raw.text(name) for name in document])
    taken = {name for names in chosen.values() for name in names}
    notes = raw.notes
    if not chosen["score"]:
        scale = scale or raw.scale or (0.0, 1.0)
        columns["score"] = pl.Series([scale[1]], dtype=pl.Float64).new_from_index(0, raw.frame.height)
        notes = (*notes, _no_score(raw.frame.select(pl.exclude(*taken, *document))))
    if document == ("document",):
        taken.add("document")
    for name in raw.fields(taken, always=document):
        columns[free_name(name, (*COLUMNS, *columns))] = raw.text(name)
    return Judgments.from_frame(
        pl.DataFrame({name: values.alias(name) for name, values in columns.items()}),
        scale=scale or raw.scale,
        source=raw.name,
        encoding=raw.encoding,
        score_name="".join(chosen["score"]) or "score",
        notes=notes,
    )


def usual(role: str, there: Sequence[str]) -> tuple[str, ...]:
    """Return the column with a usual name for a role, alone in a tuple; nothing where there is none."""
    free = {re.sub(r"[\s-]+", "_", name.casefold()): name for name in reversed(there)}
    return next(((free[name],) for name in KNOWN[role].split() if name in free), ())


def nearest(name: str, choices: Sequence[str]) -> str:
    """Return a hint at the choice that a misspelt name may mean, or nothing."""
    folded = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(name.casefold(), folded, 1)
    return f" (did you mean {folded[close[0]]!r}?)" if close else ""


def joined(texts: list[pl.Series]) -> pl.Series:
    """Return the texts of each row one a line, without the empty ones; a single column as it is."""
    if len(texts) == 1:
        return texts[0]
    parts = pl.DataFrame([text.alias(str(number)) for number, text in enumerate(texts)])
    full = pl.element().filter(pl.element().str.contains(VISIBLE))
    return parts.select(pl.concat_list(pl.all()).list.eval(full).list.join("\n")).to_series()


def as_text(values: pl.Series) -> pl.Series:
    """Return values as strings, lists and structs as JSON, and nothing as the empty string."""
    values = values.alias("text")  # for polars takes a name such as * for a pattern
    if values.dtype.is_nested():
        plain = [None if v is None else json.dumps(v, ensure_ascii=False, default=str) for v in values.to_list()]
        values = pl.Series("text", plain, dtype=pl.String)
    return values.cast(pl.String, strict=False).fill_null("")


def _no_score(others: pl.DataFrame) -> str:
    """Say that there is no score column, and which of the columns that nothing else is taken from hold numbers."""
    numbers = [
        name
        for name in others.columns
        if not _RECORD_NUMBER.fullmatch(name)
        and not others[name].dtype.is_nested()
        and others[name].alias("number").cast(pl.Float64, strict=False).is_not_null().all()
    ]
    hint = f"; if one of these holds scores, give it with --score: {files.listed(numbers)}" if numbers else ""
    return f"no score column: every pair counts as relevant{hint}"


def free_name(name: str, taken: Container[str]) -> str:
    """Return a field's name that is not taken yet, and that polars does not take for a pattern."""
    while name in taken or name.startswith("__") or name == "*" or re.fullmatch(r"\^.*\$", name):
        name = f"{name.lstrip('_')}_"
    return name

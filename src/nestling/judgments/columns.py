"""A source's table as it is read, and which of its columns hold query, document, score and ids."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from nestling.errors import InputError
from nestling.judgments.identity import VISIBLE

USUAL_NAMES = {
    "query": "query search_term search_query search_terms anchor question keyword keywords query_text",
    "document": "document title product_title name product_name passage text positive document_text product content "
    "body answer",
    "score": "score relevance label rating grade gain relevance_score similarity judgment judgement",
    "query_id": "query_id queryid qid",
    "document_id": "document_id documentid doc_id docid product_uid product_id uid pid entity_id corpus_id item_id sku",
}
RECORD_NUMBER = re.compile(r"id|index|level_0|__index_level_\d+__|unnamed: \d+|", re.IGNORECASE)


@dataclass(frozen=True)
class Raw:
    """A source's table as read: text files as strings only, Parquet with its own types.

    Attributes:
        name: the source, as a person would name it.
        notes: a line for each thing about the reading that a person should know.
        scale: lowest and highest score, where the source itself settles them.
        aliases: further names of columns.
        absent: columns that the source may lack, with what to do about it.
    """

    frame: pl.DataFrame
    name: str
    encoding: str | None = None
    notes: tuple[str, ...] = ()
    scale: tuple[float, float] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)

    def text(self, column: str) -> pl.Series:
        """Return a column as strings: lists as JSON, nothing as the empty string; refuse bytes that are no UTF-8."""
        values = self.frame[column].alias("text")  # for polars takes a name such as * for a pattern
        if values.dtype.is_nested():
            plain = [None if v is None else json.dumps(v, ensure_ascii=False, default=str) for v in values.to_list()]
            values = pl.Series("text", plain, dtype=pl.String)
        try:
            return values.cast(pl.String, strict=values.dtype == pl.Binary).fill_null("")
        except pl.exceptions.PolarsError:
            sound = [value is None or value.decode("utf-8", "ignore").encode() == value for value in values]
            where = f"row {sound.index(False) + 1}, column {listed([column])!r}"
            what = "holds bytes that are no UTF-8 text; write it as strings, or name another column"
            raise InputError(f"{self.name}, {where}: {what}") from None

    def joined(self, columns: Sequence[str]) -> pl.Series:
        """Return the texts of several columns, one a line without the empty ones, for each row."""
        if len(columns) == 1:
            return self.text(columns[0])
        parts = pl.DataFrame([self.text(name).alias(str(number)) for number, name in enumerate(columns)])
        full = pl.element().filter(pl.element().str.contains(VISIBLE))
        return parts.select(pl.concat_list(pl.all()).list.eval(full).list.join("\n")).to_series().fill_null("")

    def table(self, columns: Mapping[str, pl.Series], fields: Iterable[str], taken: Iterable[str] = ()) -> pl.DataFrame:
        """Return columns, then fields as text, renamed where another has the name or polars takes it for a pattern."""
        table = dict(columns)
        for field_name in fields:
            name = field_name
            while name in (*taken, *table) or name.startswith("__") or name == "*" or re.fullmatch(r"\^.*\$", name):
                name = f"{name.lstrip('_')}_"
            table[name] = self.text(field_name)
        return pl.DataFrame({name: values.alias(name) for name, values in table.items()})

    def columns(self, option: str, names: Iterable[str]) -> tuple[str, ...]:
        """Return columns as the table itself calls them; `option` of the command line names them in messages."""
        present = self.frame.columns
        names = tuple(self.aliases.get(name, name) if name not in present else name for name in names)
        for name in names:
            if name not in present:
                hint = f" ({self.absent[name]})" if name in self.absent else nearest(name, present)
                what = f"no column {listed([name])!r}{hint}"
                raise InputError(f"{self.name}: {what}; give {option} one of: {listed(present)}")
        return names

    def choose(self, roles: Mapping[str, tuple[str, ...]], *optional: str) -> dict[str, tuple[str, ...]]:
        """Return the columns of each role: the given ones, else one with a usual name, which `optional` may lack."""
        options = {role: "--" + role.replace("_", "-") for role in roles}
        chosen = {role: self.columns(options[role], names) for role, names in roles.items()}
        for role in chosen:
            taken = {name for names in chosen.values() for name in names}
            free = {re.sub(r"[\s-]+", "_", n.casefold()): n for n in reversed(self.frame.columns) if n not in taken}
            usual = (name for name in USUAL_NAMES[role].split() if name in free)
            chosen[role] = chosen[role] or tuple(free[name] for name in usual)[:1]
            if not chosen[role] and role not in optional:
                what = f"cannot tell which column is the {role}"
                raise InputError(f"{self.name}: {what}; give {options[role]} one of: {listed(self.frame.columns)}")
        return chosen

    def fields(self, taken: Container[str], always: Container[str] = ()) -> list[str]:
        """Return the columns beside those taken that are neither record numbers nor bytes."""
        return [
            name
            for name, kind in self.frame.schema.items()
            if name not in taken and (name in always or not (RECORD_NUMBER.fullmatch(name) or "Binary" in str(kind)))
        ]


def as_names(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return a name or several, each once."""
    return (given,) if isinstance(given, str) else tuple(dict.fromkeys(given or ()))


def listed(names: Iterable[str], most: int = 20) -> str:
    """Return names as a line for an error message: printable, each cut to 40 characters, at most `most` of them."""
    printable = ["".join(c if c.isprintable() else "?" for c in name[:40]) or "''" for name in names]
    more = f" and {len(printable) - most} more" if len(printable) > most else ""
    return (", ".join(printable[:most]) or "none") + more


def nearest(name: str, choices: Sequence[str]) -> str:
    """Return a hint at the choice that a misspelt name may mean, or nothing."""
    folded = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(name.casefold(), folded, 1)
    return f" (did you mean {folded[close[0]]!r}?)" if close else ""

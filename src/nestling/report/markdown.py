"""The study as GitHub Markdown, report.md: the same answers and tables as the page, for a repository or a chat."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from nestling import atomic
from nestling.config.run_folder import RunFolder
from nestling.report import page_tables
from nestling.report.page import cleaning_of, facts_of, reproduction_of
from nestling.report.page_data import PageData, load_page_data
from nestling.report.page_svg import without_controls
from nestling.report.page_verdict import verdict
from nestling.report.table import Cell, Table
from nestling.report.tables import by_dim, by_dim_table, comparison_table, split_table

REPORT = "report.md"
NOTE = (
    "All figures are of the test side; models were chosen on dev. An interval covers 95 % and speaks of other queries "
    "of the same kind; a difference counts as proven where p is below .05."
)

# Half a surrogate pair cannot be written as UTF-8; marks of direction reorder what stands around them.
_UNSHOWN = re.compile(r"[\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_ACTIVE = re.compile(
    r"""[&<>"|\\`*\[\]~$#]"""
    # Within words an underscore does nothing, and names stay readable.
    r"|(?<![^\W_])_|_(?![^\W_])"
    # Mentions, and addresses that become links by themselves.
    r"|(?<!\w)@|:(?=//)|(?<=www)\.",
    re.IGNORECASE,
)
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}


def write_markdown(folder: RunFolder, data: PageData | None = None) -> Path:
    """Write `report.md` from the tables of a finished run, read unless they are given; return its path.

    Raises:
        InputError: the run is not finished, or its tables are damaged or of an earlier version.
    """
    path = folder.path / REPORT
    atomic.write_text(path, markdown(data or load_page_data(folder), folder))
    return path


def markdown(data: PageData, folder: RunFolder | None = None) -> str:
    """Return the study as GitHub Markdown. Texts are escaped for Markdown and HTML wherever they stand.

    Args:
        folder: where the text will lie; the pictures that are there are shown.
    """
    parts = [f"# Study {escaped(data.name)}", _listed(facts_of(data)), "## Verdict", _answers(data), NOTE, *_data(data)]
    tables = [page_tables.full_size_table(data)]
    if any(dims[0] for dims in data.dims.values()):
        tables += [by_dim_table(by_dim(data.results), measure) for measure in data.measures]
    ceiling = f"Recall@10 can reach {data.study['test']['ceiling@10']:.4f} at most on these queries."
    parts += ["## Results", *map(table, tables), ceiling, *_charts(data, folder)]
    if not data.comparisons.is_empty():
        parts += ["## Significance", table(comparison_table(data.comparisons))]
    slices = page_tables.slices_table(data)
    if slices is not None:
        parts += ["## Slices", table(slices)]
    if data.study["training"]:
        parts += ["## Training", table(page_tables.training_table(data))]
    for finding in data.findings:
        parts += [f"## {escaped(finding.title)}", escaped(finding.text)]
        if folder is not None:
            parts += [_picture(f"{finding.title}: {path.stem}", path, folder) for path in finding.files]
    return "\n\n".join([*parts, "## How to reproduce", reproduction(data)]) + "\n"


def escaped(text: str) -> str:
    """Return `text` as one line that Markdown and HTML show as it is: no markup, link or table cell of its own.

    What is active in either becomes a character reference, which no parser reads as structure (CommonMark 0.31, 2.5).
    Control characters, marks of direction and lone surrogates become U+FFFD, and white space single spaces.
    """
    return _ACTIVE.sub(lambda found: _NAMED.get(found[0], f"&#{ord(found[0])};"), single_line(text))


def single_line(text: str) -> str:
    """Return `text` on one line without characters that cannot be shown, not escaped."""
    return _UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", without_controls(" ".join(text.split())))


def fenced(text: str, language: str = "") -> str:
    """Return `text` as a code block that nothing in it can end."""
    lines = (_UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", without_controls(line)) for line in text.splitlines())
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return "\n".join([fence + language, *lines, fence])


def table(one: Table) -> str:
    """Return a table of the page: its caption, then a Markdown table for each of its groups under the group's title."""
    parts = [escaped(one.told)]
    for title, rows in one.groups:
        parts += [f"**{escaped(title)}**"] if title else []
        lines = [_row(one.columns), "".join("|---:" if number else "|:---" for number in one.numeric) + "|"]
        lines += [_row([_cell(cell) for cell in row], escape=False) for row in rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def reproduction(data: PageData) -> str:
    """Return what another machine needs for the same study: the experiment, fingerprints, versions, seeds."""
    found = reproduction_of(data)
    facts = {
        **{f"fingerprint of {name}": value for name, value in found["fingerprints"].items()},
        **{f"seed of {name}": str(value) for name, value in found["seeds"].items()},
        "versions": ", ".join(f"{name} {value}" for name, value in found["versions"].items()),
        "machine": found["machine"],
    }
    told = "Save this as `experiment.yaml`, put the data where `source` says, and run `nestling run experiment.yaml`."
    return "\n\n".join([told, fenced(found["yaml"], "yaml"), _listed(facts)])


def _answers(data: PageData) -> str:
    lines = (
        f"- **{escaped(answer.question)}** **{escaped(answer.word)}.** {escaped(answer.text)}"
        for answer in verdict(data)
    )
    return "\n".join(lines)


def _data(data: PageData) -> list[str]:
    found = data.study["inspection"]
    text = (
        f"{found['records']:,} judged records of {found['queries']:,} queries and {found['documents']:,} documents. "
        f"A document is relevant where its score is above {found['threshold']:g}: {found['kept']:,} pairs, "
        f"{found['share']:.1%}."
    )
    cleaning = cleaning_of(data)
    if cleaning:
        text += f" Cleaning met {', '.join(cleaning)}."
    text = " ".join([text, *(f"{note}." for note in found.get("notes", ()))])
    leak = f"**{escaped(data.leak_check)}**" if data.leaks else escaped(data.leak_check)
    if data.study["split"].get("warning"):
        leak += f"\n\n**{escaped(data.study['split']['warning'])}.**"
    split, lengths = split_table(data.study["split"]), page_tables.lengths_table(data)
    return ["## Data", escaped(text), table(split), leak, table(lengths)]


def _charts(data: PageData, folder: RunFolder | None) -> list[str]:
    if folder is None:
        return []
    files = {measure: folder.picture(measure) for measure in data.measures}
    found = {measure: stem.with_name(f"{stem.name}.png") for measure, stem in files.items()}
    return [_picture(f"{measure} over sizes", path, folder) for measure, path in found.items() if path.is_file()]


def _picture(told: str, path: Path, folder: RunFolder) -> str:
    return f"![{escaped(told)}]({quote(path.relative_to(folder.path).as_posix())})"


def _listed(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- {escaped(name)}: {escaped(str(value))}" for name, value in facts.items() if value)


def _cell(cell: Cell) -> str:
    below = f"<br><sub>{escaped(cell.below)}</sub>" if cell.below else ""
    return escaped(cell.text) + below


def _row(cells: Sequence[str], *, escape: bool = True) -> str:
    return f"| {' | '.join(escaped(cell) if escape else cell for cell in cells)} |"

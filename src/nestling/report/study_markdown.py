"""The study as GitHub Markdown, report.md: the same answers and tables as the page, for a repository or a chat."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from nestling.config.run_folder import RunFolder
from nestling.report.contents import cleaning_of, facts_of, reproduction_of, tables_of
from nestling.report.page_data import PageData
from nestling.report.render.markdown import escaped, fenced, listed, markdown
from nestling.report.verdict import verdict

REPORT = "report.md"
NOTE = (
    "All figures are of the test side; models were chosen on dev. An interval covers 95 % and speaks of other queries "
    "of the same kind; a difference counts as proven where p is below .05."
)


def study_markdown(data: PageData, folder: RunFolder | None = None) -> str:
    """Return the study as GitHub Markdown. Texts are escaped for Markdown and HTML wherever they stand.

    Args:
        folder: where the text will lie; the pictures that are there are shown.
    """
    tables = {name: [markdown(table) for table in some] for name, some in tables_of(data).items()}
    parts = [f"# Study {escaped(data.name)}", listed(facts_of(data)), "## Verdict", _answers(data), NOTE]
    ceiling = f"Recall@10 can reach {data.study['test']['ceiling@10']:.4f} at most on these queries."
    parts += ["## Data", _inspected(data), *tables["split"], *leak_lines(data), *tables["lengths"]]
    parts += ["## Results", *tables["full"], *tables["by_dim"], ceiling, *_charts(data, folder)]
    for title in ("Significance", "Slices", "Training"):
        if tables[title.lower()]:
            parts += [f"## {title}", *tables[title.lower()]]
    for finding in data.findings:
        parts += [f"## {escaped(finding.title)}", escaped(finding.text)]
        if folder is not None:
            parts += [_picture(f"{finding.title}: {path.stem}", path, folder) for path in finding.files]
    return "\n\n".join([*parts, "## How to reproduce", reproduction(data)]) + "\n"


def reproduction(data: PageData) -> str:
    """Return what another machine needs for the same study: the experiment, fingerprints, versions, seeds."""
    found = reproduction_of(data)
    facts = {
        **{f"fingerprint of {name}": value for name, value in found["fingerprints"].items()},
        **{f"seed of {name}": str(value) for name, value in found["seeds"].items()},
        "versions": ", ".join(f"{name} {value}" for name, value in found["versions"].items()),
        "machine": found["machine"],
    }
    how = "Save this as `experiment.yaml`, put the data where `source` says, and run `nestling run experiment.yaml`."
    return "\n\n".join([how, fenced(found["yaml"], "yaml"), listed(facts)])


def _answers(data: PageData) -> str:
    lines = (
        f"- **{escaped(answer.question)}** **{escaped(answer.word)}.** {escaped(answer.text)}"
        for answer in verdict(data)
    )
    return "\n".join(lines)


def _inspected(data: PageData) -> str:
    found = data.study["inspection"]
    text = (
        f"{found['records']:,} judged records of {found['queries']:,} queries and {found['documents']:,} documents. "
        f"A document is relevant where its score is above {found['threshold']:g}: {found['kept']:,} pairs, "
        f"{found['share']:.1%}."
    )
    cleaning = cleaning_of(data)
    if cleaning:
        text += f" Cleaning met {', '.join(cleaning)}."
    return escaped(" ".join([text, *(f"{note}." for note in found.get("notes", ()))]))


def leak_lines(data: PageData) -> list[str]:
    """Return what the check of leaks came to, then the split's warning if it has one."""
    leak, warning = escaped(data.leak_check), data.study["split"].get("warning")
    return [f"**{leak}**" if data.leaks else leak, *([f"**{escaped(warning)}.**"] if warning else [])]


def _charts(data: PageData, folder: RunFolder | None) -> list[str]:
    if folder is None:
        return []
    files = {measure: folder.picture(measure) for measure in data.measures}
    found = {measure: stem.with_name(f"{stem.name}.png") for measure, stem in files.items()}
    return [_picture(f"{measure} over sizes", path, folder) for measure, path in found.items() if path.is_file()]


def _picture(alt: str, path: Path, folder: RunFolder) -> str:
    return f"![{escaped(alt)}]({quote(path.relative_to(folder.path).as_posix())})"

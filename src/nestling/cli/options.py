"""Options that several verbs share, and how their text becomes settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import yaml
from cyclopts import Parameter

from nestling.errors import InputError

if TYPE_CHECKING:
    from altair import LayerChart

    from nestling.config.experiment import DataSettings, Experiment
    from nestling.judgments.catalogue import Catalogue
    from nestling.progress import Observer

Number = TypeVar("Number", int, float)

Json = Annotated[bool, Parameter(name="--json", help="Print one JSON object instead of tables.")]
TextColumns = Annotated[tuple[str, ...], Parameter(help="Column of the text; several (A,B or repeated) are joined.")]
IdColumn = Annotated[str | None, Parameter(help="Column of the id; by default one with a usual name.")]
MaxUnpacked = Annotated[int, Parameter(help="MiB that a packed catalogue may unpack to.")]
Overrides = Annotated[tuple[str, ...], Parameter(name="--set", help="KEY=VALUE: change a setting; may be repeated.")]
Source = Annotated[str | None, Parameter(help="An experiment in YAML, or a source of judgments.")]
Data = Annotated[str, Parameter(help="toolshed, home-depot[:PATH], a file, a folder or a hub data set.")]
Runs = Annotated[Path, Parameter(help="The folder that holds runs.")]
EngineName = Annotated[str, Parameter(help="What encodes, of a model that was not exported; auto for the fastest.")]
MostHits = Annotated[int, Parameter(name=["-k", "--k"], help="How many documents to return for each query.")]
Dims = Annotated[
    str | None,
    Parameter(help="Falling sizes, as in 384,192,96,48; by default a model's own, its half, quarter and eighth."),
]


@Parameter(name="*")
@dataclass(frozen=True)
class Columns:
    """Names of the columns of a source, and how much of it to take."""

    query: Annotated[str | None, Parameter(help="Column of the query.")] = None
    document: Annotated[
        tuple[str, ...], Parameter(help="Column of the document; several (A,B or repeated) are joined.")
    ] = ()
    score: Annotated[str | None, Parameter(help="Column of the relevance score.")] = None
    query_id: Annotated[str | None, Parameter(help="Column of the query's id, if there is one.")] = None
    document_id: Annotated[str | None, Parameter(help="Column of the document's id, if there is one.")] = None
    scale: Annotated[tuple[float, float] | None, Parameter(help="Lowest and highest score a rater can give.")] = None
    hub_split: Annotated[str | None, Parameter(help="Split of a hub data set.")] = None
    revision: Annotated[str | None, Parameter(help="Revision of a hub data set.")] = None
    records: Annotated[int | None, Parameter(help="Take this many records at random.")] = None
    threshold: Annotated[float | None, Parameter(help="A document is relevant above this score (2.5 on 1 to 3).")] = (
        None
    )
    max_unpacked: Annotated[int | None, Parameter(help="MiB that a packed file may unpack to (2048).")] = None

    def given(self) -> dict[str, Any]:
        """Return the settings that were given, under their names in an experiment."""
        values = {**vars(self), "document": with_commas(self.document)}
        return {name: value for name, value in values.items() if value not in (None, [])}

    def settings(self, source: str) -> DataSettings:
        """Return the settings of a source of judgments."""
        from nestling.config.experiment import DataSettings
        from nestling.config.yaml_files import make_settings

        return make_settings(DataSettings, source=source, **self.given())


@Parameter(name="*")
@dataclass(frozen=True)
class RunOptions:
    """A run, and what is to be different from the experiment that is given."""

    columns: Columns = Columns()
    name: Annotated[str | None, Parameter(help="Name of the run; its folder is RUNS/NAME.")] = None
    runs: Runs = Path("runs")
    change: Overrides = ()

    def experiment(self, source: str | None) -> Experiment:
        """Return the experiment of a YAML file, on a source of judgments, or without either the demo's."""
        from nestling.config.yaml_files import load_experiment

        path = Path(source) if source and source.endswith((".yaml", ".yml")) else None
        changes: dict[str, Any] = {}
        if source and path is None:
            # Not the demo's sizes: someone else's data are taken whole, with the defaults of a study.
            changes = {"name": run_name(source), "data": {"source": source}, "training": {}}
        changes |= {f"data.{key}": value for key, value in self.columns.given().items()}
        changes |= {"name": self.name} if self.name else {}
        return load_experiment(path, {**changes, **as_changes(self.change)})


@Parameter(name="*")
@dataclass(frozen=True)
class CatalogueOptions:
    """Names of a catalogue's columns, and those of them to keep."""

    document: TextColumns = ()
    document_id: IdColumn = None
    fields: Annotated[str | None, Parameter(help="Columns to show and filter by, as in brand,size; else all.")] = None
    max_unpacked: MaxUnpacked = 2048

    def load(self, catalogue: str, observer: Observer) -> Catalogue:
        """Read a catalogue, and tell the observer of what was not taken as it is."""
        from nestling.judgments.catalogue import load_catalogue

        loaded = load_catalogue(
            catalogue,
            document=with_commas(self.document),
            document_id=self.document_id,
            fields=None if self.fields is None else [name for name in self.fields.split(",") if name],
            max_unpacked=self.max_unpacked,
        )
        for note in loaded.notes:
            observer.note(note)
        return loaded


@Parameter(name="*")
@dataclass(frozen=True)
class PromptOptions:
    """Prompts before texts, for models that need them and store none."""

    query_prompt: Annotated[
        str | None, Parameter(help='Put before each query where the model stores none, as e5\'s "query: ".')
    ] = None
    document_prompt: Annotated[str | None, Parameter(help='The same for documents, as in "passage: ".')] = None

    def given(self) -> dict[str, str]:
        """Return those that were given, by kind of text."""
        both = {"query": self.query_prompt, "document": self.document_prompt}
        return {kind: prompt for kind, prompt in both.items() if prompt is not None}


def as_changes(texts: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE texts; values as in YAML."""
    changes: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {text!r}: give KEY=VALUE, as in training.epochs=1")
        try:
            # YAML reads 1e-4 as text, for want of a dot.
            scientific = re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value)
            changes[key.strip()] = float(value) if scientific else yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--set {text!r}: the value is no valid YAML") from None
    return changes


def with_commas(texts: Sequence[str]) -> list[str]:
    """Return the names in texts that each hold one or, with commas between, several."""
    return [name for text in texts for name in text.split(",")]


def numbers(text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """Read numbers with commas between."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{text!r}: give numbers with commas between, as in 384,192,96,48") from None


def named_paths(texts: Sequence[str], what: str) -> dict[str, str]:
    """Read PATH or NAME=PATH texts of models or indexes; one without a name is called by the last part of its path."""
    paths: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            last = Path(text).name
            name, path = last if last.strip(".") else Path(text).resolve().name, text
        if name in paths:
            raise InputError(f"two {what} are called {name!r}; give one another name, as in NAME={path}")
        paths[name] = path
    return paths


def named_files(texts: Sequence[str]) -> dict[str, Path]:
    """Read the NAME=FILE texts of --run."""
    files = {}
    for text in texts:
        name, _, path = text.partition("=")
        if not name or not path:
            raise InputError(f"--run {text!r}: give NAME=FILE")
        files[name] = Path(path)
    return files


def run_path(run: Path, runs: Path) -> Path:
    """Return the folder of a run, given by itself or by its name in `runs`."""
    for folder in (run, runs / run):
        if folder.is_dir():
            return folder
    raise InputError(f"there is no run {run}, here or in {runs}; give the folder of a finished nestling run")


def save_picture(chart: LayerChart, path: Path) -> tuple[Path, Path]:
    """Write a chart as PATH.png and PATH.svg, whether PATH has one of these endings or none."""
    from nestling.report.charts import save

    return save(chart, path.with_suffix("") if path.suffix in (".png", ".svg") else path)


def run_name(source: str) -> str:
    """Return a run's name from the source of its data: the file's name without endings, or the preset's."""
    stem = Path(source.removeprefix("hf:").split(":")[0].rstrip("/")).name.split(".")[0]
    return re.sub(r"[^\w.+-]+", "-", stem).strip("-.") or "run"

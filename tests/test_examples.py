"""Every fenced example of README and the pages, and experiment.yaml, run in order in a folder with what they name."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from fixtures.tiny import build_tiny_model
from nestling.cli import app
from nestling.config.experiment import Experiment
from nestling.config.yaml_files import make_experiment
from nestling.judgments.toolshed import generate
from nestling.study.tune.space import make_space

ROOT = Path(__file__).parents[1]
PAGES = ("tutorial", "studies", "sizes", "serving", "settings")
DOCUMENTS = ("README.md", *(f"docs/{name}.md" for name in PAGES))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OTHERS = (
    *("docs/experiments.md", "docs/scale.md", "docs/postgres.md", "docs/architecture.md"),
    *("CONTRIBUTING.md", "CHANGELOG.md", "experiment.yaml"),
)
"""Read for names of folders alone."""
BRANDS = ("Acme", "Bolt")
RECORDS = 100
STAND_INS = (
    ("runs/demo/", "runs/toolshed/", "the demo takes minutes; experiment.yaml is run before"),
    (
        "--score relevance",
        "--score relevance --set variants=[mnrl] --set training.epochs=1",
        "experiment.yaml runs all variants after it",
    ),
    ("--engine ray --address HOST:PORT", "", "no cluster is here; tests/serving/encode/test_catalogue.py starts one"),
)
"""(part of a command, what stands in for it here, why)."""
PARSED_ONLY = (
    ("nestling serve", "it would listen; tests/serving/service/test_listening.py runs it"),
    ("from openai", "it needs a server; tests/serving/service/test_openai_clients.py runs it"),
)
"""(start of a command or of a block of Python, why it is only parsed)."""
LOOKED_UP = ("pip", "make", "curl")
"""Commands that would change this machine or need a server: what they name must be there."""


@dataclass(frozen=True)
class Example:
    place: str
    language: str
    text: str


def examples() -> list[Example]:
    found = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Example(f"{name}:{line}", match[1], match[2]))
    return found


EXAMPLES = examples()


class Shelf:
    """A folder with what the examples name: judgments, a catalogue, and a small model by each base's name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done = 0
        self.names: dict[str, Any] = {}
        bases = [folder / "all-MiniLM-L6-v2", folder / "sentence-transformers" / "all-mpnet-base-v2"]
        # As wide as the default model, whose sizes the examples name.
        made = build_tiny_model(folder / "parts", hidden=384)
        for base in bases:
            shutil.copytree(made, base)
        frame = generate(RECORDS, seed=0).frame
        judged = frame.select(
            pl.col("query").alias("search_term"), "title", "description", pl.col("score").alias("relevance")
        )
        judged.write_csv(folder / "judgments.csv")
        products = frame.unique("document_id", maintain_order=True).with_row_index()
        products = products.select(
            pl.col("document_id").alias("sku"),
            "title",
            "description",
            pl.when(pl.col("index") % 2 == 0).then(pl.lit(BRANDS[0])).otherwise(pl.lit(BRANDS[1])).alias("brand"),
            "size",
        )
        products.write_csv(folder / "products.csv")
        (folder / "products").mkdir()
        products.write_parquet(folder / "products" / "1.parquet")
        self.names["documents"] = products["title"].to_list()
        own = yaml.safe_load((ROOT / "experiment.yaml").read_text(encoding="utf-8"))
        # Fewer records and epochs; all else as it stands there.
        own["data"]["records"] = RECORDS
        own["training"]["epochs"] = 1
        own["variants"] = [
            {"recipe": "graded", "training": {"epochs": 1}} if v == "graded" else v for v in own["variants"]
        ]
        (folder / "experiment.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")

    def upto(self, place: int) -> None:
        """Run the examples that lead to this one and have not run, and then it."""
        while self.done <= place:
            self.done += 1
            self.run(EXAMPLES[self.done - 1])

    def run(self, example: Example) -> None:
        if example.language == "sh":
            for command in commands(example.text):
                self.call(command)
        elif example.language == "python":
            code = compile(f"import nestling\n{example.text}", example.place, "exec")
            if not any(example.text.startswith(start) for start, _ in PARSED_ONLY):
                exec(code, self.names)
        elif example.language == "yaml":
            values = yaml.safe_load(example.text)
            make = make_experiment if set(values) <= set(Experiment.model_fields) else make_space
            make(values)

    def call(self, command: str) -> None:
        for part, instead, _ in STAND_INS:
            command = command.replace(part, instead)
        words = shlex.split(command)
        if words[0] in LOOKED_UP:
            look_up(words)
            return
        assert words[0] == "nestling", command
        if any(command.startswith(start) for start, _ in PARSED_ONLY):
            app.app.parse_args(words[1:], exit_on_error=False, print_error=False)
            return
        code: object = 0
        try:
            app.main(words[1:])
        except SystemExit as left:
            code = left.code
        assert not code, f"{command}: exit code {code}"


def commands(text: str) -> list[str]:
    lines = (line.split(" # ")[0].strip() for line in text.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def look_up(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if words[0] == "pip":
        named = [word for word in words if word.startswith(project["name"])]
        extras = {extra for word in named for extra in word.partition("[")[2].rstrip("]").split(",") if extra}
        assert named
        assert extras <= set(project["optional-dependencies"]), words
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(targets), words
    else:
        address = next(word for word in words if word.startswith("localhost"))
        path = "/" + address.partition("/")[2]
        service = (ROOT / "src/nestling/serving/service").glob("*.py")
        assert any(f'"{path}"' in file.read_text(encoding="utf-8") for file in service), words


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("examples"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("place", range(len(EXAMPLES)), ids=[example.place for example in EXAMPLES])
def test_an_example_runs_after_those_before_it(place: int, shelf: Shelf, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(shelf.folder)
    # A rotation of 384 dims takes seconds whatever is rotated; here it shall only be made, not be good.
    monkeypatch.setattr("nestling.retrieval.trained_rotation.STEPS", 10)
    monkeypatch.setattr("nestling.study.estimate.BATCHES", 1)
    shelf.upto(place)


def test_no_example_hides_in_a_block_without_a_language():
    for example in EXAMPLES:
        if not example.language:
            assert not re.search(r"^(nestling|pip|make|curl|import) ", example.text, re.MULTILINE), example.place
        else:
            assert example.language in ("sh", "python", "yaml"), example.place


def test_every_stand_in_and_exception_is_still_needed():
    text = "\n".join(example.text for example in EXAMPLES)
    for part in [each[0] for each in (*STAND_INS, *PARSED_ONLY)]:
        assert part in text, part


def test_the_documents_name_no_folder_of_our_own_machines():
    for name in (*DOCUMENTS, *OTHERS):
        assert "../shared" not in (ROOT / name).read_text(encoding="utf-8"), name

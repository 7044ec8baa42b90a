"""A run's folder: where everything lies, what has been done, and the lock that keeps a second process out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from nestling import atomic
from nestling.config.manifests import read_json
from nestling.errors import InputError

STATE, MODELS = "state.json", "models"


class RunFolder:
    """The files of one run.

    `state.json` holds, for each thing that is done, the fingerprint of what it was made from; one that the experiment
    no longer asks for is stale.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.experiment = path / "experiment.yaml"
        self.inspection = path / "inspection.json"
        self.split = path / "split"
        self.tokens = path / "tokens"
        self.embeddings = path / "embeddings"
        self.results = path / "results.parquet"
        self.results_json = path / "results.json"
        self.per_query = path / "per_query.parquet"
        self.comparisons = path / "comparisons.parquet"
        self.slices = path / "slices.parquet"
        self.rankings = path / "rankings.parquet"
        self.report = path / "report.html"
        self.tuning = path / "tuning"
        self.curve = path / "curve"
        self.log = path / "log.jsonl"

    @classmethod
    def of_model(cls, model: str | Path) -> RunFolder | None:
        """Return the run that a model lies in; None where its path is not RUNS/NAME/models/VARIANT.

        >>> RunFolder.of_model("runs/demo/models/graded").path.as_posix()
        'runs/demo'
        """
        folder = Path(model).expanduser()
        return cls(folder.parent.parent) if folder.parent.name == MODELS else None

    def model(self, variant: str) -> Path:
        """Return the folder of a variant's model."""
        return self.path / MODELS / variant

    def training(self, variant: str) -> Path:
        """Return the folder of a variant's checkpoints while it trains, and of its summary afterwards."""
        return self.path / "training" / variant

    def evaluation(self, variant: str) -> Path:
        """Return the table of a variant's figures by query; a model's fusion with BM25 has a name of its own."""
        return self.path / "evaluation" / f"{variant}.parquet"

    def ranking(self, variant: str) -> Path:
        """Return the table of the documents that a variant puts on top for each query."""
        return self.path / "evaluation" / f"{variant}.ranking.parquet"

    def measured(self, variant: str) -> Path:
        """Return the JSON of a variant's evaluation: engine, texts, seconds, and the weights of BM25 by cell."""
        return self.path / "evaluation" / f"{variant}.json"

    def picture(self, measure: str) -> Path:
        """Return the path, without suffix, of the picture of a measure over sizes."""
        return self.path / f"{measure.replace('@', '_at_')}_by_dim"

    @property
    def state(self) -> dict[str, str]:
        """Finished outputs: a name such as `split` or `model mnrl`, and the fingerprint it was made from."""
        path = self.path / STATE
        if not path.exists():
            return {}
        state: dict[str, str] = read_json(path, dict[str, str], advice=f"remove {self.path} or choose another --name")
        return state

    def is_done(self, name: str, made_from: str, *paths: Path) -> bool:
        """Return whether `name` was made from just that, and its files are there."""
        return self.state.get(name) == made_from and all(path.exists() for path in paths)

    def mark(self, name: str, made_from: str) -> None:
        """Record that `name` is done."""
        atomic.write_json(self.path / STATE, {**self.state, name: made_from})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder while the block runs; raise InputError where one works in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.path / ".lock").acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"{self.path}: another nestling works in this folder; wait, or choose another --name"
            ) from None
        with lock:
            yield

"""Fine-tune a small embedding model on your own search judgments, and learn how small its embeddings can get.

The names below are the public API. Each is imported when it is first used, so that `import nestling` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nestling.environment import VERSION

__version__ = VERSION

_HOMES = {
    "Catalogue": "nestling.judgments.catalogue",
    "Encoder": "nestling.models.exported_encoder:ExportedEncoder",
    "Evaluation": "nestling.study.evaluate",
    "Experiment": "nestling.config.experiment",
    "Index": "nestling.serving.index.index",
    "IndexSettings": "nestling.serving.index.settings",
    "InputError": "nestling.errors",
    "Judgments": "nestling.judgments.table",
    "Run": "nestling.study.run",
    "evaluate": "nestling.study.evaluate",
    "export": "nestling.serving.export.export",
    "index": "nestling.serving.index.build",
    "inspect": "nestling.study.data",
    "load_catalogue": "nestling.judgments.catalogue",
    "load_experiment": "nestling.config.yaml_files",
    "load_judgments": "nestling.judgments.sources",
    "load_model": "nestling.models.load",
    "load_shrunk": "nestling.models.encoder",
    "run": "nestling.study.run",
    "shrink": "nestling.study.shrink",
    "split": "nestling.study.data",
    "train": "nestling.study.train",
}
__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from nestling.config.experiment import Experiment as Experiment
    from nestling.config.yaml_files import load_experiment as load_experiment
    from nestling.errors import InputError as InputError
    from nestling.judgments.catalogue import Catalogue as Catalogue
    from nestling.judgments.catalogue import load_catalogue as load_catalogue
    from nestling.judgments.sources import load_judgments as load_judgments
    from nestling.judgments.table import Judgments as Judgments
    from nestling.models.encoder import load_shrunk as load_shrunk
    from nestling.models.exported_encoder import ExportedEncoder
    from nestling.models.load import load_model as load_model
    from nestling.serving.export.export import export as export
    from nestling.serving.index.build import index as index
    from nestling.serving.index.index import Index as Index
    from nestling.serving.index.settings import IndexSettings as IndexSettings
    from nestling.study.data import inspect as inspect
    from nestling.study.data import split as split
    from nestling.study.evaluate import Evaluation as Evaluation
    from nestling.study.evaluate import evaluate as evaluate
    from nestling.study.run import Run as Run
    from nestling.study.run import run as run
    from nestling.study.shrink import shrink as shrink
    from nestling.study.train import train as train

    Encoder = ExportedEncoder


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nestling' has no attribute {name!r}")
    home, _, other = _HOMES[name].partition(":")
    return getattr(import_module(home), other or name)


def __dir__() -> list[str]:
    return __all__

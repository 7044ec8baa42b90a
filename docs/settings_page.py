"""The page of settings, made from their fields: `python docs/settings_page.py > docs/settings.md`."""

from __future__ import annotations

import json
import sys
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic_core import PydanticUndefined, to_jsonable_python

from nestling.config import experiment, training

SECTIONS = (
    ("The experiment", experiment.Experiment),
    ("`data`", experiment.DataSettings),
    ("`split`", experiment.SplitSettings),
    ("`training`", training.TrainingSettings),
    *((f"`training.{name}`", step) for name, step in training.STEPS.items()),
    ("One of `variants`", experiment.Variant),
    ("`matryoshka` of a variant", training.Matryoshka),
    ("`prompts`", experiment.Prompts),
    ("`evaluation`", experiment.EvaluationSettings),
)
HEAD = """# Settings

Every key of an experiment's YAML file, and of `--set KEY=VALUE`. This page is made from the code, by
`python docs/settings_page.py > docs/settings.md`; a test holds it up to date.
"""
HEADER = "| name | type | default | |\n|---|---|---|---|\n"
WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", NoneType: "null", dict: "mapping"}


def render() -> str:
    """Return the page as Markdown."""
    parts = [HEAD]
    for title, model in SECTIONS:
        about = f"{' '.join(model.__doc__.split())}\n\n" if model.__doc__ and title.startswith("`training.") else ""
        parts.append(f"\n## {title}\n\n{about}" + (HEADER if model.model_fields else "It has no settings.\n"))
        for name, field in model.model_fields.items():
            about = " ".join((field.description or "See below.").split())
            cells = (f"`{name}`", _type(field.annotation), _default(field.default), about)
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), [each for each in get_args(annotation) if each is not ...]
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in inner)
    if origin is tuple:
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return "mapping"
    return " or ".join(map(_type, inner)) if inner else WORDS.get(annotation, "mapping")


def _default(value: Any) -> str:
    if isinstance(value, training.Settings) or value is PydanticUndefined:
        return ""
    return f"`{json.dumps(to_jsonable_python(value))}`"


if __name__ == "__main__":
    sys.stdout.write(render())

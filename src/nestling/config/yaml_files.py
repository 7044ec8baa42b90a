"""Settings from YAML, with errors that name the file, the line and the key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from nestling.config.experiment import DEMO, Experiment
from nestling.config.training import REMOVED, TrainingSettings
from nestling.errors import InputError

Settings = TypeVar("Settings", bound=BaseModel)


def read_yaml(path: Path, *, expected: str) -> tuple[Any, yaml.Node | None]:
    """Return a YAML file's values and its nodes, which know their lines; an InputError advises to give `expected`."""
    try:
        text = path.read_text(encoding="utf-8")
        return yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}; give {expected}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; give {expected}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: no valid YAML ({getattr(error, 'problem', None) or error})") from None


def load_experiment(path: Path | None, changes: dict[str, Any] | None = None) -> Experiment:
    """Read an experiment from YAML, or the demo, and apply changes of dotted keys, as in `{"data.records": 25000}`."""
    values, node = read_yaml(path, expected="an experiment file") if path else (deepcopy(DEMO), None)
    values, where = values or {}, str(path or "experiment")
    if not isinstance(values, dict):
        raise InputError(f"{where}: an experiment is a mapping of keys to values, as in name: my-study")
    for key, value in (changes or {}).items():
        *parents, last = key.split(".")
        section = values
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise InputError(f"{key}: {parent} is not a mapping, so it cannot be set")
        section[last] = value
    return make_experiment(values, where=where, lines=dict(_lines(node)))


def make_experiment(
    values: dict[str, Any], *, where: str = "experiment", lines: dict[tuple[str | int, ...], int] | None = None
) -> Experiment:
    """Build an experiment from plain values; raise InputError with `WHERE[, line N]: KEY: what is wrong`."""
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        location, known = error.errors()[0]["loc"], lines or {}
        line = next((known[location[:n]] for n in range(len(location), 0, -1) if location[:n] in known), None)
        raise InputError(f"{where}{f', line {line}' if line else ''}: {explain(error, Experiment)}") from None


def make_settings(kind: type[Settings], **values: Any) -> Settings:
    """Build one part of an experiment from plain values, None for a default; raise InputError with the first key's."""
    try:
        return kind.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise InputError(explain(error, kind)) from None


def explain(errors: ValidationError, kind: type[BaseModel]) -> str:
    """Return the first of the errors of settings of a kind as `KEY: what is wrong`."""
    error: Any = errors.errors()[0]
    location = error["loc"]
    key = ".".join(map(str, location))
    if error["type"] == "extra_forbidden":
        if location[-1] in REMOVED and (kind is TrainingSettings or "training" in location):
            return f"{key}: {REMOVED[str(location[-1])]}"
        close = difflib.get_close_matches(str(location[-1]), _fields(kind, location[:-1]), n=1)
        return f"{key}: unknown key{f'; did you mean {close[0]!r}?' if close else ''}"
    message = str(error["msg"]).removeprefix("Value error, ")
    value = error.get("input")
    given = f", not {value!r}" if error["type"] != "value_error" and isinstance(value, str | int | float) else ""
    return (f"{key}: " if key else "") + message[0].lower() + message[1:] + given


def _fields(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    for part in location:
        field = model.model_fields.get(str(part))
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return list(model.model_fields)


def _lines(node: yaml.Node | None, at: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """Yield (path of keys, line number) for every value of a YAML document."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*at, key.value), key.start_mark.line + 1
            yield from _lines(value, (*at, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield (*at, number), value.start_mark.line + 1
            yield from _lines(value, (*at, number))

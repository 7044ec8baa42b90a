"""Where the settings and the machines of several runs differ, and how that is told."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nestling.errors import clean
from nestling.report import charts
from nestling.report.contents import without_folders
from nestling.report.page_data import PageData

Values = dict[str, dict[str, Any]]
"""What differs -> a run's label -> its value; a run that has no such thing is left out."""


def settings_apart(pages: Sequence[PageData], labels: Sequence[str]) -> Values:
    """Return the settings that are not the same in all runs: of the experiments, then of variants of one name."""
    experiments = {label: page.study["experiment"] for label, page in zip(labels, pages, strict=True)}
    plain_settings = {label: dict(_flat(one)) for label, one in experiments.items()}
    variants: dict[str, dict[str, dict[str, Any]]] = {}
    for label, one in experiments.items():
        for variant in one["variants"]:
            rest = {key: value for key, value in variant.items() if key != "name"}
            variants.setdefault(str(variant["name"]), {})[label] = dict(_flat(rest))
    found = _differing(plain_settings)
    for name, of_runs in variants.items():
        found |= {f"{clean(name)}: {key}": values for key, values in _differing(of_runs).items()}
    shown = {key: _hidden(key, values) for key, values in found.items()}
    return {key: values for key, values in shown.items() if len(values) < 2 or len(_distinct(values.values())) > 1}


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if key == "variants":
            yield key, [clean(str(variant["name"])) for variant in value]
        elif key in ("data", "split", "training", "evaluation"):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        elif key != "name":
            yield key, value


def _differing(of_runs: Mapping[str, Mapping[str, Any]]) -> Values:
    keys = dict.fromkeys(key for values in of_runs.values() for key in values)
    found = {key: {run: values[key] for run, values in of_runs.items() if key in values} for key in keys}
    return {
        key: values
        for key, values in found.items()
        if len(values) < len(of_runs) or len(_distinct(values.values())) > 1
    }


def _distinct(values: Iterable[Any]) -> set[str]:
    return {json.dumps(value, sort_keys=True) for value in values}


def _hidden(key: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return values without the folders of this machine, but for as many as it takes to tell models apart."""
    if key == "data.source":
        return {run: charts.short_source(str(value)) for run, value in values.items()}
    if key != "model" and not key.endswith(": base"):
        return values
    texts = list(dict.fromkeys(value for value in values.values() if value is not None))
    if not texts:
        return values
    short = dict(
        zip(texts, told_apart([str(without_folders(one)) for one in texts], list(map(Path, texts))), strict=True)
    )
    return {run: value and short[value] for run, value in values.items()}


def environment_apart(pages: Sequence[PageData], labels: Sequence[str]) -> Values:
    """Return the versions and parts of the machine that are not the same in all runs."""
    return _differing(
        {label: {**page.study["hardware"], **page.study["versions"]} for label, page in zip(labels, pages, strict=True)}
    )


def told_apart(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Return a different name for each path: its own where no other has it, else the fewest last parts of the path.

    Raises:
        ValueError: two paths are the same.
    """
    if len(set(paths)) < len(paths):
        raise ValueError("two paths are the same")
    for every in (False, True):
        for depth in range(0 if not every else 1, max(len(path.parts) for path in paths) + 1):
            found = [
                "/".join(path.parts[-depth:]) if depth and (every or names.count(name) > 1) else name
                for name, path in zip(names, paths, strict=True)
            ]
            if len(set(found)) == len(found):
                return found
    return [str(path) for path in paths]


def told(value: Any) -> str:
    """Return a setting's value for people."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(told, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {told(inner)}" for key, inner in value.items()) or "by default"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)

"""Settings and machines in which several runs differ, and how they are written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nestling.errors import clean
from nestling.report import charts
from nestling.report.contents import without_folders
from nestling.report.page_data import PageData

Values = dict[str, dict[str, Any]]
"""Setting -> a run's label -> its value; a run that has no such thing is left out."""
SECTIONS = ("data", "split", "training", "evaluation")


def differing_settings(pages: Sequence[PageData], labels: Sequence[str]) -> Values:
    """Return the settings that are not the same in all runs: of the experiments, then of variants of one name."""
    experiments = {label: page.study["experiment"] for label, page in zip(labels, pages, strict=True)}
    differing = _differing({label: _flat(one) for label, one in experiments.items()})
    variants: dict[str, dict[str, dict[str, Any]]] = {}
    for label, one in experiments.items():
        for variant in one["variants"]:
            variants.setdefault(str(variant["name"]), {})[label] = _flat(variant)
    for name, of_runs in variants.items():
        differing |= {f"{clean(name)}: {key}": values for key, values in _differing(of_runs).items()}
    published = {key: _without_folders(key, values) for key, values in differing.items()}
    return {key: values for key, values in published.items() if len(values) < 2 or _distinct(values) > 1}


def differing_environment(pages: Sequence[PageData], labels: Sequence[str]) -> Values:
    """Return the versions and parts of the machine that are not the same in all runs."""
    studies = {label: page.study for label, page in zip(labels, pages, strict=True)}
    return _differing({label: study["hardware"] | study["versions"] for label, study in studies.items()})


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "variants":
            flat[key] = [clean(str(variant["name"])) for variant in value]
        elif key in SECTIONS and isinstance(value, Mapping):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        elif key != "name":
            flat[key] = value
    return flat


def _differing(of_runs: Mapping[str, Mapping[str, Any]]) -> Values:
    keys = dict.fromkeys(key for values in of_runs.values() for key in values)
    rows = {key: {run: values[key] for run, values in of_runs.items() if key in values} for key in keys}
    return {key: values for key, values in rows.items() if len(values) < len(of_runs) or _distinct(values) > 1}


def _distinct(values: Mapping[str, Any]) -> int:
    return len({json.dumps(value, sort_keys=True) for value in values.values()})


def _without_folders(key: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return values without this machine's folders, but for as many as it takes to distinguish models."""
    if key == "data.source":
        return {run: charts.short_source(str(value)) for run, value in values.items()}
    if key != "model" and not key.endswith(": base"):
        return values
    models = list(dict.fromkeys(value for value in values.values() if value is not None))
    names = distinct_names([str(without_folders(one)) for one in models], list(map(Path, models)))
    short = dict(zip(models, names, strict=True))
    return {run: value and short[value] for run, value in values.items()}


def distinct_names(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Return a different name for each path: its own where no other has it, else the fewest last parts of the path."""
    for depth in range(max((len(path.parts) for path in paths), default=0)):
        longer = [
            "/".join(path.parts[-depth:]) if depth and names.count(name) > 1 else name
            for name, path in zip(names, paths, strict=True)
        ]
        if len(set(longer)) == len(longer):
            return longer
    return [str(path) for path in paths]


def setting_text(value: Any) -> str:
    """Return a setting's value as people read it."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(setting_text, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {setting_text(inner)}" for key, inner in value.items()) or "by default"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)

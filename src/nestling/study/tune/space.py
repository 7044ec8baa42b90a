"""The search space: which training settings a search varies, and over what values. Data, checked against settings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import ValidationError

from nestling.config.training import TrainingSettings, renamed
from nestling.config.yaml_files import explain, read_yaml
from nestling.errors import InputError

if TYPE_CHECKING:
    import optuna

Value: TypeAlias = bool | int | float | str | None

DEFAULT_SPACE: dict[str, dict[str, Any]] = {
    "learning_rate": {"low": 1e-5, "high": 5e-4, "log": True},
    "schedule": {"choices": ["linear", "cosine", "constant_with_warmup"]},
    "warmup": {"low": 0.0, "high": 0.3},
    "batch_size": {"choices": [32, 64, 128, 256]},
    "epochs": {"low": 1, "high": 5},
    "finetune.scale": {"low": 10.0, "high": 50.0, "log": True},
    "max_seq_length": {"choices": [None, 64, 128]},
}
"""The default search space, in the form of a `--space` file."""


@dataclass(frozen=True)
class Dimension:
    """One setting and its values: either some choices, or a range with both ends, evenly in its log if so set."""

    name: str
    low: float = 0
    high: float = 0
    log: bool = False
    choices: tuple[Value, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether it is a range of whole numbers."""
        return not self.choices and isinstance(self.low, int) and isinstance(self.high, int)

    def __contains__(self, value: object) -> bool:
        if self.choices:
            return value in self.choices
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        return not self.whole or value == int(value)

    def position(self, value: Any) -> float:
        """Return where `value` lies on the way from the first to the last, from 0 to 1."""
        if self.choices:
            return self.choices.index(value) / max(1, len(self.choices) - 1)
        if self.low == self.high:
            return 0.0
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return float((value - self.low) / (self.high - self.low))

    def suggest(self, trial: optuna.Trial) -> Value:
        """Return a trial's value of it."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, float(self.low), float(self.high), log=self.log)

    def as_dict(self) -> dict[str, Any]:
        """Return it as it stands in a file."""
        if self.choices:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high, "log": self.log}


Space: TypeAlias = tuple[Dimension, ...]


def load_space(path: Path) -> Space:
    """Read a space from YAML: a setting's name -> `{low:, high:, log: true}` or `{choices: [...]}`."""
    return make_space(read_yaml(path, expected="a search space in YAML")[0], where=str(path))


def make_space(values: Any, *, where: str = "space") -> Space:
    """Build a space from plain values; raise InputError with `WHERE: SETTING: what is wrong`."""
    if not isinstance(values, Mapping) or not values:
        raise InputError(
            f"{where}: a space maps settings to values, as in learning_rate: {{low: 1.0e-5, high: 1.0e-3}}"
        )
    space = []
    for name, given in values.items():
        try:
            dimension = _dimension(renamed(str(name)), given)
            for value in dimension.choices or (dimension.low, dimension.high):
                TrainingSettings.model_validate({dimension.name: value})
        except ValidationError as error:
            raise InputError(f"{where}: {explain(error, TrainingSettings)}") from None
        except ValueError as error:
            raise InputError(f"{where}: {name}: {error}") from None
        space.append(dimension)
    return tuple(space)


def settings_with(base: TrainingSettings, params: Mapping[str, Any]) -> TrainingSettings:
    """Return `base` with the values of a trial in place; raise InputError where they do not go together."""
    try:
        return TrainingSettings.model_validate({**base.model_dump(), **params})
    except ValidationError as error:
        raise InputError(f"training: {explain(error, TrainingSettings)}") from None


def value_text(value: Any) -> str:
    """Return a setting's value in few characters."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return "none" if value is None else str(value)


def _dimension(name: str, given: Any) -> Dimension:
    """Return one dimension; raise ValueError with what is wrong with it."""
    if name == "preset":
        raise ValueError("no training setting by itself, but several, which can be searched one by one")
    if not isinstance(given, Mapping) or set(given) not in ({"choices"}, {"low", "high"}, {"low", "high", "log"}):
        raise ValueError("give {low: A, high: B}, log: true beside them if you like, or {choices: [A, B]}")
    if "choices" in given:
        return Dimension(name, choices=_choices(given["choices"]))
    low, high, log = _number(given["low"]), _number(given["high"]), given.get("log", False)
    for end, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{end} must be a number, not {value!r}")
    if low > high:
        raise ValueError(f"low {low:g} is above high {high:g}")
    if not isinstance(log, bool):
        raise ValueError(f"log must be true or false, not {log!r}")
    if log and low <= 0:
        raise ValueError(f"low must be above 0 where log is true, not {low:g}")
    return Dimension(name, low=low, high=high, log=log)


def _choices(given: Any) -> tuple[Value, ...]:
    if not isinstance(given, list) or not given:
        raise ValueError("choices needs a list of values")
    choices = tuple(map(_number, given))
    for value in choices:
        if not isinstance(value, bool | int | float | str | None):
            raise ValueError(f"a choice is a number, a text, true, false or null, not {value!r}")
        if choices.count(value) > 1:
            raise ValueError(f"{value!r} is there twice")
    return choices


def _number(value: Any) -> Any:
    # YAML reads 1e-4 as text, for want of a dot.
    is_number = isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value)
    return float(value) if is_number else value

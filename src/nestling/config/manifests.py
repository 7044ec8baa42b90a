"""JSON files that Nestling wrote, read with every entry's type checked: damage is a line that names file and key."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nestling.errors import InputError, unread

WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}
LARGEST = 2**63 - 1


def read_json(path: Path, kind: Any, *, advice: str, missing: str | None = None) -> Any:
    """Return what a JSON file holds, as `kind` (see `shaped`); advise where it is damaged or missing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(missing or f"{path} cannot be read ({error.strerror}); {advice}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise unread(path, error, f"{path} cannot be read ({error}); {advice}") from None
    return shaped(value, kind, str(path), advice)


def shaped(value: Any, kind: Any, path: str, advice: str, key: str = "") -> Any:
    """Return a JSON value as `kind`: a dataclass, or a type made of dict, list, tuple, unions, literals and scalars.

    By hand, so that pydantic need not be installed to serve. Entries that a dataclass does not have are passed over.
    Raises InputError, with the file and the key, where it is no `kind`.
    """

    def check(fits: bool, what: str) -> None:
        if not fits:
            text = json.dumps(value)
            text = text if len(text) <= 40 else text[:39] + "…"
            raise InputError(f"{path}: {key or 'its content'} must be {what}, not {text}; {advice}")

    def within(part: Any, part_kind: Any, name: object) -> Any:
        return shaped(part, part_kind, path, advice, f"{key}.{name}" if key else str(name))

    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind) and isinstance(kind, type):
        check(isinstance(value, dict), "an object")
        for field in fields(kind):
            if field.name not in value and field.default is MISSING and field.default_factory is MISSING:
                raise InputError(f"{path} lacks {f'{key}.{field.name}' if key else field.name}; {advice}")
        hints = get_type_hints(kind)
        return kind(**{f.name: within(value[f.name], hints[f.name], f.name) for f in fields(kind) if f.name in value})
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        [other] = [argument for argument in arguments if argument is not NoneType]
        return shaped(value, other, path, advice, key)
    if origin is Literal:
        check(isinstance(value, str) and value in arguments, f"one of {', '.join(arguments)}")
        return value
    if origin is dict:
        check(isinstance(value, dict), "an object")
        return {name: within(part, arguments[1], name) for name, part in value.items()}
    if origin in (list, tuple):
        check(isinstance(value, list), "a list")
        if origin is list or arguments[1:] == (...,):
            return origin(within(part, arguments[0], n) for n, part in enumerate(value))
        check(len(value) == len(arguments), f"a list of {len(arguments)}")
        return tuple(within(part, of, n) for n, (part, of) in enumerate(zip(value, arguments, strict=True)))
    if kind is float:
        check(type(value) in (int, float) and abs(value) <= LARGEST and math.isfinite(value), WORDS[kind])
        return float(value)
    check(type(value) is kind and (kind is not int or abs(value) <= LARGEST), WORDS[kind])
    return value

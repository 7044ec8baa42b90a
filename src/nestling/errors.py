"""The one error that a user can cause and mend: a clear line, no traceback."""

from __future__ import annotations

from pathlib import Path


class InputError(ValueError):
    """Bad input or bad settings. The text says what is wrong, where, and what to do, in one line."""


def unread(path: Path, error: Exception, otherwise: str) -> InputError:
    """Return the error of a file that could not be read: that it may not be read, or else `otherwise`."""
    denied = error if isinstance(error, PermissionError) else None
    if denied is None:
        # safetensors calls a file missing that it may not read, and other libraries raise errors of their own.
        try:
            path.open("rb").close()
        except PermissionError as found:
            denied = found
        except (OSError, ValueError):
            pass
    if denied is None:
        return InputError(otherwise)
    return InputError(f"cannot read {denied.filename or path}: permission denied; let this user read it")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def clean(text: str) -> str:
    """Return `text` without control characters, so that data cannot send escapes to the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)

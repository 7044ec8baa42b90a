"""The one error that a user can cause and mend: a clear line, no traceback."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input or bad settings. The text says what is wrong, where, and what to do, in one line."""

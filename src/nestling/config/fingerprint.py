"""Fingerprints: short hashes of contents, by which finished work is recognised."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def fingerprint(value: Any, *, size: int = 8) -> str:
    """Return the BLAKE2b of bytes, of a file's content (given its path), or of any other value as JSON, in hex digits.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    >>> fingerprint(b"drill", size=4)
    'c7406fb9'
    """
    if isinstance(value, Path):
        with value.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=size)).hexdigest()
    data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
    return hashlib.blake2b(data, digest_size=size).hexdigest()

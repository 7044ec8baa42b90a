"""When two texts are the same query or document, and when a text is none."""

from __future__ import annotations

import unicodedata

VISIBLE = r"[^\s\p{Z}\p{Cc}\p{Default_Ignorable_Code_Point}\x{2800}]"
"""Matches (in polars) a character that shows: a text without one, of zero-width spaces say, is blank."""


def normalise(text: str) -> str:
    """Return the identity of a query or document text: NFKC, casefolded, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())

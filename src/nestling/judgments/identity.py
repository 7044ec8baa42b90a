"""When two texts are the same query or document."""

from __future__ import annotations

import unicodedata


def normalise(text: str) -> str:
    """Return the identity of a query or document text: NFKC, casefolded, runs of white space as one space.

    Example:
        >>> normalise("  Ångström\\u00a0Drill ")
        'ångström drill'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())

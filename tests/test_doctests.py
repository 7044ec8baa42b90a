"""Examples in docstrings say what they do."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

import nestling

SOURCES = Path(nestling.__file__).parent
WITH_EXAMPLES = [
    path
    for path in sorted(SOURCES.rglob("*.py"))
    if re.search(r"^ +>>> (?!.*SKIP)", path.read_text(encoding="utf-8"), re.M)
]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(SOURCES)))
def test_the_examples_of_a_module_are_right(path: Path) -> None:
    module = importlib.import_module(".".join(["nestling", *path.relative_to(SOURCES).with_suffix("").parts]))
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0

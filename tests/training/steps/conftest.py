"""For tests of the steps of a training: one split, and steps that are all kept."""

from __future__ import annotations

import pytest

from fixtures.training import keep_every_step
from nestling.judgments.split import Split, split_judgments
from nestling.judgments.toolshed import generate


@pytest.fixture(scope="module")
def split() -> Split:
    return split_judgments(generate(600, seed=0), test=0.2, dev=0.3, seed=0)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_every_step(monkeypatch)

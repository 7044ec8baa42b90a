"""For tests of the steps of a training: one split, a first step that is trained once, and steps that are all kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.training import Trained, keep_every_step, trained_and_kept
from nestling.judgments.split import Split, split_judgments
from nestling.judgments.toolshed import generate


@pytest.fixture(scope="session")
def split() -> Split:
    return split_judgments(generate(600, seed=0), test=0.2, dev=0.3, seed=0)


@pytest.fixture(scope="session")
def plain(split: Split, tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A first step, kept whatever dev says."""
    with pytest.MonkeyPatch.context() as patch:
        keep_every_step(patch)
        return trained_and_kept(split, tiny_model_path, tmp_path_factory.mktemp("plain"))


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_every_step(monkeypatch)

"""What all tests share: no network, and a tiny model built once a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from fixtures.browser import started
from fixtures.tiny import build_tiny_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from sentence_transformers import SentenceTransformer

# Read by the hub client when it is imported, so before any test imports it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# The same tests on every machine, unless the variable says otherwise: `make gpu` shows a GPU to those that want one.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# No property depends on how long an example takes on a busy machine.
settings.register_profile("nestling", deadline=None)
settings.load_profile("nestling")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the folders with trainings first, so that no long file is left for one of two workers at the end."""
    items.sort(key=lambda item: item.path.relative_to(config.rootpath).parts[1] not in ("training", "study", "cli"))


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_model(tiny_model_path: Path) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(tiny_model_path), device="cpu")


# Playwright leaves an event loop running in this thread, which other modules' tests may not meet.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as running:
        yield running

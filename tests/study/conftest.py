"""What tests of studies share."""

from __future__ import annotations

import pytest


@pytest.fixture
def without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the pictures and pages out of the runs of a test that does not look at them."""
    monkeypatch.setattr("nestling.report.charts.save", lambda chart, stem: (stem.with_suffix(".png"),))
    monkeypatch.setattr("nestling.report.page.write_pages", lambda folder: folder.report)

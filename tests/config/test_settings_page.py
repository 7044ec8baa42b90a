from __future__ import annotations

import runpy
from pathlib import Path

from nestling.config.training import STEPS

DOCS = Path(__file__).parents[2] / "docs"
OF_THEIR_OWN = {"data", "split", "training", "variants", "evaluation", "matryoshka", *STEPS}
"""Settings that have a section of their own."""


def test_the_page_of_settings_is_up_to_date_and_says_what_each_is() -> None:
    made = runpy.run_path(str(DOCS / "settings_page.py"))
    page = (DOCS / "settings.md").read_text(encoding="utf-8")
    assert page == made["render"](), "make it again: python docs/settings_page.py > docs/settings.md"
    for _, model in made["SECTIONS"]:
        assert {name for name, field in model.model_fields.items() if not field.description} <= OF_THEIR_OWN

"""All that a finished run says of itself: report.html, report.md and a card in each trained model's folder."""

from __future__ import annotations

from pathlib import Path

from nestling.config.run_folder import RunFolder
from nestling.report.markdown import write_markdown
from nestling.report.model_card import write_cards
from nestling.report.page import write_page
from nestling.report.page_data import load_page_data


def write_pages(folder: RunFolder) -> Path:
    """Write them from the run's tables alone; return the path of report.html.

    Raises:
        InputError: the run is not finished, or its tables are damaged or of an earlier version.
    """
    data = load_page_data(folder)
    write_page(folder, data)
    write_markdown(folder, data)
    write_cards(folder, data)
    return folder.report

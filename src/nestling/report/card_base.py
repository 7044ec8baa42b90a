"""What a model card says of the model that training began with: its name, its hub id and its license."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nestling.config.names import DEFAULT_MODEL
from nestling.models.hub import BUNDLED_NAMES
from nestling.report.render.markdown import single_line

CARD = "README.md"
LICENSES = {
    f"sentence-transformers/{DEFAULT_MODEL}": "apache-2.0",
    "sentence-transformers/all-mpnet-base-v2": "apache-2.0",
}
"""Of base models whose own card need not be at hand."""


@dataclass(frozen=True)
class Base:
    """The model that training began with: its name without folders, its hub id if it has one, and its license."""

    name: str
    hub_id: str | None
    license: dict[str, Any]


def base_of(name: str) -> Base:
    """Return what is known of a base model; the license is looked up in its card where that is at hand."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    if name in BUNDLED_NAMES:
        hub_id = f"sentence-transformers/{DEFAULT_MODEL}"
        return Base(hub_id, hub_id, {"license": LICENSES[hub_id]})
    folder = Path(name).expanduser()
    if folder.is_dir() or name.startswith((".", "/", "~")):
        return Base(folder.name, None, _license(folder / CARD))
    hub_id, _, revision = name.partition("@")
    hub_id = hub_id if "/" in hub_id else f"sentence-transformers/{hub_id}"
    try:
        validate_repo_id(hub_id)
    except HFValidationError:
        return Base(Path(name).name, None, {})
    if hub_id in LICENSES:
        return Base(hub_id, hub_id, {"license": LICENSES[hub_id]})
    cached = try_to_load_from_cache(hub_id, CARD, revision=revision or None)
    return Base(hub_id, hub_id, _license(Path(cached)) if isinstance(cached, str) else {})


def _license(card: Path) -> dict[str, str]:
    """Return the license fields of a card's front matter; empty where it has none that can be told."""
    from huggingface_hub import ModelCard

    try:
        found = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict() if card.is_file() else {}
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        return {}
    told = {key: found.get(key) for key in ("license", "license_name", "license_link")}
    if not isinstance(told["license"], str) or not re.fullmatch(r"[\w.+-]{1,60}", told["license"]):
        return {}
    return {key: single_line(value) for key, value in told.items() if isinstance(value, str)}

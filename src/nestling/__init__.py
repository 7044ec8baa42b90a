"""Fine-tune a small embedding model on your own search judgments, and learn how small its embeddings can get.

The names below are the public API. Each is imported when it is first used, so that `import nestling` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "InputError": "nestling.errors",
    "Judgments": "nestling.judgments.table",
    "load_judgments": "nestling.judgments.sources",
}
__all__ = ["__version__", *_HOMES]  # noqa: PLE0604

if TYPE_CHECKING:
    from nestling.errors import InputError as InputError
    from nestling.judgments.table import Judgments as Judgments


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nestling' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__

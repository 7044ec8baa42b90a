"""A model becomes a folder that the light runtime reads: converted, checked against torch, and written whole or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from nestling import atomic
from nestling.config.names import Kind
from nestling.config.run_folder import RunFolder
from nestling.environment import needed, versions
from nestling.errors import InputError
from nestling.evaluation.qrels import Qrels
from nestling.judgments.split import split_judgments
from nestling.judgments.split_files import read_split
from nestling.judgments.table import Judgments
from nestling.judgments.threshold import settle_threshold
from nestling.judgments.toolshed import generate
from nestling.models.encoder import SHRUNK, load_shrunk
from nestling.models.engines.openvino import Inputs
from nestling.models.exported_encoder import CODEC, INPUTS, MANIFEST, TOKENIZER, VERSION, ExportedEncoder
from nestling.models.load import ModelSource, find_model, load_model, prompts_of
from nestling.models.tokens import Tokens
from nestling.progress import Observer
from nestling.retrieval.codec import Codec
from nestling.serving.export.check import Check, check_export
from nestling.serving.export.formats import refuse_unknown, write_onnx, write_openvino, write_table

Format = Literal["onnx", "openvino"]
Precision = Literal["fp32", "bf16", "int8"]
CALIBRATION = 100
"""Queries, and as many documents, that int8 is calibrated on."""
CATALOGUE = 1500
"""Records of the generated catalogue, where no split is given."""
PROBES = ("", "drill", "Écru DRILL-bit 3/8 in. 漢字 \u00ad\u200b\U0001f528 [MASK] </s>", "a white steel door " * 400)


@dataclass(frozen=True)
class Exported:
    """An export that was written, of `size` bytes; `format` is `onnx`, `openvino`, or `table` of a static model."""

    folder: Path
    format: str
    precision: str
    dim: int
    size: int
    check: Check


def export(
    model: str,
    out: Path | str,
    *,
    format: Format = "onnx",
    precision: Precision = "fp32",
    split: Path | None = None,
    threshold: float | None = None,
    prompts: Mapping[str, str] | None = None,
    force: bool = False,
    observer: Observer | None = None,
) -> Exported:
    """Write a model as a folder that `ExportedEncoder` reads without torch.

    A static model becomes a table, whatever the format. InputError where the model cannot be exported, or loses more
    than 0.5 % of torch's recall@10 (without a split: agrees on less than 90 % of the ten nearest).

    Args:
        model: a folder, also one that `shrink` wrote, a bundled name or a hub id.
        precision: bf16 is for OpenVINO alone; int8 is weights and activations in 8 bits, calibrated on training texts.
        split: a folder that `nestling split` wrote, to calibrate on its training side and check on its dev side; by
            default that of the model's run, else the generated catalogue.
        threshold: a document is relevant above it; 2.5 on a scale of 1 to 3 by default.
        prompts: what to put before a query and a document, for models that store none; see `find_model`.
        force: write the folder also where it loses too much.
    """
    out, observer = Path(out), observer or Observer()
    for value, allowed in ((format, get_args(Format)), (precision, get_args(Precision))):
        if value not in allowed:
            raise InputError(f"no format or precision is called {value!r}; give one of {', '.join(allowed)}")
    if format == "onnx" and precision == "bf16":
        raise InputError("onnxruntime has no fast bf16 on CPUs; give --format openvino, or --precision fp32 or int8")
    if out.exists():
        raise InputError(f"{out} exists; give another folder, or remove it first")
    run = RunFolder.of_model(model)
    if split is None and run is not None and run.split.is_dir():
        split = run.split
    source = find_model(model, prompts=prompts)
    loaded, codec, about = read_model(source)
    refuse_unknown(loaded)
    static = isinstance(loaded[0], StaticEmbedding)
    kind = "table" if static else format
    if not static:
        # Before the split is read and the model traced.
        packages = ("openvino",) if format == "openvino" else ("onnx", "onnxruntime")
        needed(f"the export to {format} in {precision}", *packages, *(("nncf",) if precision == "int8" else ()))
    train, qrels = read_texts(split, threshold)
    try:
        observer.stage(f"export {model}", f"{kind}, {precision}")
        with atomic.new_folder(out) as folder:
            tokens = _write_tokens(loaded, folder, static=static)
            used = prompts_of(loaded)
            if static:
                write_table(loaded, folder, precision=precision)
            else:
                write = write_openvino if format == "openvino" else write_onnx
                write(loaded, folder, precision=precision, calibration=_calibration(train, used, tokens))
            if codec is not None:
                codec.save(folder / CODEC)
            manifest = {
                "nestling_runtime": VERSION,
                "format": kind,
                "precision": precision,
                "dim": int(loaded.get_embedding_dimension() or 0),
                "max_seq_length": None if static else loaded.max_seq_length,
                "prompts": used,
                "tokenizer": {"special": tokens.special, "pad_id": tokens.pad_id, "pad_side": tokens.pad_side},
                "source": {"model": Path(model).name or model, "fingerprint": source.fingerprint},
                "shrunk": about,
                "versions": versions(),
                "files": {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())},
            }
            atomic.write_json(folder / MANIFEST, manifest)
            observer.stage("check it against torch", "dev" if split else "no split: the generated catalogue")
            threads = torch.get_num_threads()
            encoder = ExportedEncoder.open(folder, threads=threads)
            check = check_export(loaded, encoder, qrels, texts="dev" if split else "toolshed", threads=threads)
            if check.fault and not force:
                advice = "choose another --precision or --format, or --force"
                raise InputError(f"{out} is not written: {check.fault}; {advice}")
            atomic.write_json(folder / MANIFEST, {**manifest, "check": check.as_dict()})
            size = sum(path.stat().st_size for path in folder.iterdir())
    finally:
        observer.done()
    return Exported(out, kind, precision, encoder.dim, size, check)


def read_model(source: ModelSource) -> tuple[SentenceTransformer, Codec | None, dict[str, Any] | None]:
    """Return a model on the CPU at its full size, and its codec and what was chosen where `shrink` wrote it."""
    if not (source.folder / SHRUNK).is_file():
        return load_model(source, device="cpu").eval(), None, None
    model, codec, about = load_shrunk(source.folder)
    model.prompts.update(source.given)
    model.truncate_dim = None
    return model.to("cpu").eval(), codec, about


def read_texts(split: Path | None, threshold: float | None) -> tuple[Judgments, Qrels]:
    """Return the judgments to calibrate on and the qrels to check on: of a split, or of the generated catalogue."""
    sides = read_split(split) if split else split_judgments(generate(CATALOGUE, seed=0), dev=0.3)
    settled = settle_threshold(sides.train, threshold if split else None)
    return sides.train, Qrels.from_judgments(sides.dev, threshold=settled)


def _write_tokens(model: SentenceTransformer, folder: Path, *, static: bool) -> Tokens:
    """Write the tokenizer with the model's truncation, and return it as the runtime reads it."""
    backend = model.tokenizer if static else getattr(model.tokenizer, "_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise InputError("the model has no fast tokenizer (tokenizer.json), which an export needs")
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_padding()
    pad_id, on_left = 0, False
    if not static:
        pad_id, on_left = int(model.tokenizer.pad_token_id or 0), model.tokenizer.padding_side == "left"
        copy.no_truncation()
        if model.max_seq_length is not None:
            copy.enable_truncation(int(model.max_seq_length), direction=model.tokenizer.truncation_side)
    path = folder / TOKENIZER
    copy.save(str(path))
    tokens = Tokens.from_file(path, special=not static, pad_id=pad_id, pad_side="left" if on_left else "right")
    for text, ids in zip(PROBES, tokens.ids(PROBES), strict=True):
        if text and ids != model.preprocess([text])["input_ids"].flatten().tolist():
            raise InputError("the model reads texts in a way of its own, beyond its tokenizer, which is not exported")
    return tokens


def _calibration(train: Judgments, prompts: Mapping[Kind, str], tokens: Tokens) -> list[Inputs]:
    """Return the inputs of a forward pass for each of some training queries and documents, always the same ones."""
    texts = []
    for kind in prompts:
        distinct = train.frame[kind].unique(maintain_order=True)
        chosen = np.random.default_rng(0).permutation(len(distinct))[:CALIBRATION]
        texts += [prompts[kind] + text for text in distinct[np.sort(chosen)]]
    return [dict(zip(INPUTS, tokens.padded([ids]), strict=True)) for ids in tokens.ids(texts) if ids]

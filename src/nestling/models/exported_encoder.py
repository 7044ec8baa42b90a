"""The light runtime: texts to vectors from an exported folder, without torch, transformers or a data frame."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from nestling.config.manifests import read_json, shaped
from nestling.config.names import Kind
from nestling.environment import needed
from nestling.errors import InputError, first_line, unread
from nestling.models.tokens import Tokens
from nestling.retrieval.codec import Codec
from nestling.retrieval.vectors import truncate

Matrix = NDArray[np.float32]
Padded = Callable[[Mapping[str, NDArray[np.int64]]], Matrix]
"""Ids and their mask by name, (n, length) -> (n, dim) float32."""

MANIFEST, TOKENIZER, CODEC = "nestling_runtime.json", "tokenizer.json", "nestling_codec.safetensors"
VERSION = 1
BATCH_SIZE = 64
TABLE_BATCHES = 64
KINDS = get_args(Kind)
ADVICE = "export the model again"
ONNX, OPENVINO, TABLE = "model.onnx", "openvino_model.xml", "table.safetensors"
INPUTS = ("input_ids", "attention_mask")


class ExportedEncoder:
    """A model that `nestling export` wrote, also for several threads; `open` makes one.

    Attributes:
        dim: size of the vectors.
        codec: how documents are to be stored, of a model that was shrunk; otherwise None. Where `codec.dim` is smaller
            than `dim`, the codes give a shortlist from `truncate(vectors, codec.dim)` and the whole vectors rescore it.
        oversampling: how many times as long as the result that shortlist is; 0 without rescoring.
        fingerprint: of the model that was exported, the same in every format and precision.
        max_seq_length: tokens after which a text is cut; None for no limit.
    """

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        about = _manifest(folder)
        for name, digest in about.files.items():
            _check(folder / Path(name).name, digest)
        self.folder, self.dim, self.fingerprint = folder, about.dim, about.source.fingerprint
        self.codec = Codec.load(folder / CODEC) if CODEC in about.files else None
        self.oversampling = about.shrunk.oversampling if about.shrunk else 0
        self.format, self.precision, self.max_seq_length = about.format, about.precision, about.max_seq_length
        self.prompts = {kind: about.prompts.get(kind, "") for kind in KINDS}
        self._tokens = Tokens.from_file(folder / TOKENIZER, **vars(about.tokenizer))
        self._at_once, self._forward = 1, self._padded
        if about.format == "onnx":
            self._run = _open_onnx(folder / ONNX, threads)
        elif about.format == "openvino":
            self._run = _open_openvino(folder / OPENVINO, about.precision, threads)
        else:
            self._at_once, self._forward = TABLE_BATCHES, Table.read(folder / TABLE).mean

    @classmethod
    def open(cls, folder: Path | str, *, threads: int | None = None) -> ExportedEncoder:
        """Read an exported folder, checked against its SHA-256 sums; threads are by default about one a core."""
        return cls(Path(folder), threads=threads)

    def encode(self, texts: Sequence[str], *, kind: Kind = "document", batch_size: int = BATCH_SIZE) -> Matrix:
        """Encode texts, each distinct one once, in batches of like token count; the kind picks the prompt.

        Returns (len(texts), dim) float32, C-contiguous, each row of length 1 (a zero row stays zero).
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be 'query' or 'document', got {kind!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        if isinstance(texts, str):
            raise ValueError("encode takes a list of texts, not one string")
        place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        vectors = np.zeros((len(place), self.dim), dtype=np.float32)
        ids = self._tokens.ids([self.prompts[kind] + text for text in place])
        order = np.argsort([-len(tokens) for tokens in ids], kind="stable")
        # A text without a single token, not even a special one, is left at zero: attention over nothing is NaN.
        order = order[: sum(map(bool, ids))]
        step = batch_size * self._at_once
        for start in range(0, len(order), step):
            rows = order[start : start + step]
            vectors[rows] = truncate(self._forward([ids[row] for row in rows]), self.dim)
        return vectors if len(place) == len(texts) else vectors[[place[text] for text in texts]]

    def _padded(self, ids: Sequence[Sequence[int]]) -> Matrix:
        return self._run(dict(zip(INPUTS, self._tokens.padded(ids), strict=True)))


@dataclass(frozen=True)
class _Tokenizer:
    special: bool
    pad_id: int
    pad_side: Literal["left", "right"]


@dataclass(frozen=True)
class _Source:
    fingerprint: str


@dataclass(frozen=True)
class _Shrunk:
    oversampling: int = 0


@dataclass(frozen=True)
class _Manifest:
    format: Literal["onnx", "openvino", "table"]
    precision: str
    dim: int
    max_seq_length: int | None
    prompts: dict[str, str]
    tokenizer: _Tokenizer
    source: _Source
    files: dict[str, str]
    shrunk: _Shrunk | None = None


def _manifest(folder: Path) -> _Manifest:
    path = folder / MANIFEST
    missing = f"{folder}: holds no {MANIFEST}; give a folder that export wrote"
    content = read_json(path, Any, advice=ADVICE, missing=missing)
    version = content.get("nestling_runtime") if isinstance(content, dict) else None
    if version != VERSION:
        raise InputError(f"{path}: form {version!r} is not {VERSION}, the one that this version reads; {ADVICE}")
    about: _Manifest = shaped(content, _Manifest, str(path), ADVICE)
    if about.dim < 1:
        raise InputError(f"{path}: dim must be 1 or more, not {about.dim}; {ADVICE}")
    return about


def _check(path: Path, digest: str) -> None:
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise unread(path, error, f"{path}: no such file, but {MANIFEST} lists it; {ADVICE}") from None
    if actual != digest:
        raise InputError(f"{path}: damaged, its SHA-256 is not the one in {MANIFEST}; {ADVICE}")


def _open_onnx(path: Path, threads: int | None) -> Padded:
    runtime = needed(str(path.parent), "onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises kinds of its own
        raise InputError(f"{path}: onnxruntime cannot read it ({first_line(error)}); {ADVICE}") from None
    return lambda inputs: np.asarray(session.run(None, inputs)[0], dtype=np.float32)


def _open_openvino(path: Path, precision: str, threads: int | None) -> Padded:
    core = needed(str(path.parent), "openvino").Core()
    try:
        return compiled(core, str(path), bf16=precision == "bf16" and has_bf16(core), threads=threads)
    except RuntimeError as error:
        raise InputError(f"{path}: openvino cannot read it ({first_line(error)}); {ADVICE}") from None


def has_bf16(core: Any) -> bool:
    """Return whether OpenVINO computes in bf16 on this CPU."""
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def compiled(core: Any, model: Any, *, bf16: bool, threads: int | None) -> Padded:
    """Compile a graph of OpenVINO, or the file of one, and return what runs it, also from several threads."""
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    program = core.compile_model(model, "CPU", settings)
    # A request holds its own buffers and serves one call at a time.
    free: deque[Any] = deque()

    def infer(inputs: Mapping[str, NDArray[np.int64]]) -> Matrix:
        try:
            request = free.pop()
        except IndexError:
            request = program.create_infer_request()
        output = np.array(request.infer(inputs, share_inputs=True)[0])
        free.append(request)
        return output

    return infer


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of word pieces; a text is the mean of its pieces' rows, one without pieces zeros.

    Rows are (vocabulary, dim) float32, or int8 beside the (vocabulary,) value of one unit in each.
    """

    rows: NDArray[np.generic]
    scales: Matrix | None = None

    @classmethod
    def read(cls, path: Path) -> Table:
        """Read what an export wrote; InputError where safetensors cannot."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            arrays = load_file(path)
            return cls(arrays["rows"], arrays.get("scales"))
        except (OSError, SafetensorError, KeyError) as error:
            raise unread(path, error, f"{path}: holds no table ({first_line(error)}); {ADVICE}") from None

    def mean(self, ids: Sequence[Sequence[int]]) -> Matrix:
        """Return the mean of each text's rows, (n, dim) float32; no text's depends on the others."""
        means = np.zeros((len(ids), self.rows.shape[1]), dtype=np.float32)
        for row, pieces in enumerate(ids):
            if pieces:
                places = np.asarray(pieces)
                vectors = self.rows[places].astype(np.float32, copy=False)
                means[row] = (vectors if self.scales is None else vectors * self.scales[places, None]).mean(axis=0)
        return means

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

Padded = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]
"""(n, length) ids and their mask -> (n, dim) float32."""

MANIFEST, TOKENIZER, CODEC = "nestling_runtime.json", "tokenizer.json", "nestling_codec.safetensors"
VERSION = 1
BATCH_SIZE = 64
TABLE_BATCHES = 64
KINDS = get_args(Kind)
ADVICE = "export the model again"
ONNX, OPENVINO, TABLE = "model.onnx", "openvino_model.xml", "table.safetensors"
INPUTS = ("input_ids", "attention_mask")
LONG = 8192
"""Tokens from which a text's rows are counted instead of gathered, so that memory stays within the vocabulary's."""


@dataclass(frozen=True, eq=False)
class ExportedEncoder:
    """A model that `nestling export` wrote, ready to encode, also from several threads; `open` makes one.

    Attributes:
        folder: where it was read from.
        dim: size of the vectors.
        codec: how documents are to be stored, of a model that was shrunk; otherwise None. Where `codec.dim` is smaller
            than `dim`, the codes give a shortlist from `truncate(vectors, codec.dim)` and the whole vectors rescore it.
        oversampling: how many times as long as asked for that shortlist is; 0 without rescoring.
        fingerprint: of the model that was exported, 16 hex digits: the same in every format and precision.
        max_seq_length: tokens of a text that are read; None reads all.
        format: `onnx`, `openvino` or `table`.
        precision: `fp32`, `bf16` or `int8`.
        prompts: what is put before a text of each kind.
    """

    folder: Path
    dim: int
    codec: Codec | None
    oversampling: int
    fingerprint: str
    max_seq_length: int | None
    format: str
    precision: str
    prompts: dict[str, str]
    _tokens: Tokens
    _forward: Padded | Table

    @classmethod
    def open(cls, folder: Path | str, *, threads: int | None = None) -> ExportedEncoder:
        """Read an exported folder; its files are held against their SHA-256.

        Args:
            threads: that a forward pass may use; by default the engine's own choice, about one a core.

        Raises:
            InputError: the folder was not written by an export, is damaged, or needs a package that is missing.
        """
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be 1 or more, got {threads}")
        folder = Path(folder)
        about = _manifest(folder)
        for name, digest in about.files.items():
            _check(folder / Path(name).name, digest)
        forward: Padded | Table
        if about.format == "onnx":
            forward = onnx_forward(folder / ONNX, threads=threads)
        elif about.format == "openvino":
            forward = openvino_forward(folder / OPENVINO, about.precision, threads=threads)
        else:
            forward = Table.read(folder / TABLE)
        return cls(
            folder=folder,
            dim=about.dim,
            codec=Codec.load(folder / CODEC) if CODEC in about.files else None,
            oversampling=about.shrunk.oversampling if about.shrunk else 0,
            fingerprint=about.source.fingerprint,
            max_seq_length=about.max_seq_length,
            format=about.format,
            precision=about.precision,
            prompts={kind: about.prompts.get(kind, "") for kind in KINDS},
            _tokens=Tokens.from_file(
                folder / TOKENIZER,
                special=about.tokenizer.special,
                pad_id=about.tokenizer.pad_id,
                pad_side=about.tokenizer.pad_side,
            ),
            _forward=forward,
        )

    def encode(
        self,
        texts: Sequence[str],
        *,
        kind: Kind = "document",
        batch_size: int = BATCH_SIZE,
    ) -> NDArray[np.float32]:
        """Encode texts, as `nestling.models.torch_encoder.embed` does with the model that was exported.

        Each distinct text is encoded once, in batches of like token count.

        Args:
            texts: queries or documents; not one string.
            kind: picks the model's prompt.
            batch_size: texts in a forward pass.

        Returns:
            (len(texts), dim) float32, C-contiguous, each row of length 1 (a zero row stays zero).

        Raises:
            ValueError: `kind` is neither of the two, the batch size is below 1, or `texts` is one string.
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
        order = np.argsort([-len(each) for each in ids], kind="stable")
        # A text without a single token, not even a special one, is left at zero: attention over nothing is NaN.
        order = order[: sum(1 for each in ids if each)]
        step = batch_size * (TABLE_BATCHES if isinstance(self._forward, Table) else 1)
        for start in range(0, len(order), step):
            rows = order[start : start + step]
            some = [ids[row] for row in rows]
            found = self._forward.mean(some) if isinstance(self._forward, Table) else self._padded(some)
            vectors[rows] = truncate(found, self.dim)
        if len(place) == len(texts):
            return vectors
        return vectors[[place[text] for text in texts]]

    def _padded(self, ids: list[list[int]]) -> NDArray[np.float32]:
        assert not isinstance(self._forward, Table)
        return self._forward(*self._tokens.padded(ids))


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
    about = read_json(path, Any, advice=ADVICE, missing=missing)
    version = about.get("nestling_runtime") if isinstance(about, dict) else None
    if version != VERSION:
        raise InputError(f"{path}: form {version!r} is not {VERSION}, the one that this version reads; {ADVICE}")
    found: _Manifest = shaped(about, _Manifest, str(path), ADVICE)
    if found.dim < 1:
        raise InputError(f"{path}: dim must be 1 or more, not {found.dim}; {ADVICE}")
    return found


def _check(path: Path, digest: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise unread(path, error, f"{path}: no such file, but {MANIFEST} lists it; {ADVICE}") from None
    if found != digest:
        raise InputError(f"{path}: damaged, its SHA-256 is not the one in {MANIFEST}; {ADVICE}")


def onnx_forward(path: Path, *, threads: int | None) -> Padded:
    """Open a graph in onnxruntime on the CPU. What is returned may be called from several threads.

    Raises:
        InputError: onnxruntime is missing or cannot read the file.
    """
    runtime = needed(str(path.parent), "onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises kinds of its own
        raise InputError(f"{path}: onnxruntime cannot read it ({first_line(error)}); export the model again") from None

    def forward(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run(None, dict(zip(INPUTS, (ids, mask), strict=True)))[0]
        return found

    return forward


def openvino_forward(path: Path, precision: str, *, threads: int | None) -> Padded:
    """Compile a model in OpenVINO for the CPU. What is returned may be called from several threads.

    Args:
        precision: `bf16` computes in it where the CPU has it, else in float32; `fp32` and `int8` never do.

    Raises:
        InputError: openvino is missing or cannot read the file.
    """
    runtime = needed(str(path.parent), "openvino")
    core = runtime.Core()
    try:
        halved = precision == "bf16" and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if halved else "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        compiled = core.compile_model(str(path), "CPU", settings)
    except RuntimeError as error:
        raise InputError(f"{path}: openvino cannot read it ({first_line(error)}); export the model again") from None
    infer = request_pool(compiled)
    return lambda ids, mask: infer(dict(zip(INPUTS, (ids, mask), strict=True)))


def request_pool(compiled: Any) -> Callable[[Mapping[str, NDArray[np.int64]]], NDArray[np.float32]]:
    """Return what runs a compiled model of OpenVINO, from any thread: inputs by name -> its first output."""
    # A request holds its own buffers and serves one call at a time.
    free: deque[Any] = deque()

    def infer(inputs: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        try:
            request = free.pop()
        except IndexError:
            request = compiled.create_infer_request()
        found = np.array(request.infer(inputs, share_inputs=True)[0])
        free.append(request)
        return found

    return infer


class Table:
    """Rows of word pieces; a text is the mean of its pieces' rows, one without pieces zeros."""

    def __init__(self, rows: NDArray[np.generic], scales: NDArray[np.float32] | None = None) -> None:
        """Take (vocabulary, dim) float32 rows, or int8 rows and the (vocabulary,) worth of one unit in each."""
        self.rows, self.scales = rows, scales

    @classmethod
    def read(cls, path: Path) -> Table:
        """Read what an export wrote.

        Raises:
            InputError: safetensors cannot read the file.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            arrays = load_file(path)
            return cls(arrays["rows"], arrays.get("scales"))
        except (OSError, SafetensorError, KeyError) as error:
            raise unread(path, error, f"{path}: holds no table ({first_line(error)}); export the model again") from None

    def of(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the rows of ids, (n, dim) float32."""
        found: NDArray[np.float32] = self.rows[ids].astype(np.float32, copy=False)
        return found if self.scales is None else found * self.scales[ids, None]

    def mean(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Return the mean of each text's rows, (n, dim) float32; no text's depends on the others."""
        means = np.zeros((len(ids), self.rows.shape[1]), dtype=np.float32)
        for row, each in enumerate(ids):
            if 0 < len(each) <= LONG:
                means[row] = self.of(np.asarray(each)).mean(axis=0)
            elif each:
                seen, times = np.unique(np.asarray(each), return_counts=True)
                means[row] = (times / len(each)).astype(np.float32) @ self.of(seen)
        return means

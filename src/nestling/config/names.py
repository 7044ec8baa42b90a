"""The names that settings and options may hold."""

from __future__ import annotations

from typing import Literal, get_args

Kind = Literal["query", "document"]
"""The kind of a text for a model: each of the two has its own prompt."""

DEFAULT_MODEL = "all-MiniLM-L6-v2"
PRETRAINED = "pretrained"
"""Not a recipe but the lack of one: the base model as it is."""

MAX_UNPACKED = 2048
"""MiB that a packed file may unpack to."""

SplitMethod = Literal["auto", "components", "queries", "queries-only"]

Rotation = Literal["none", "pca", "trained"]
ROTATIONS: tuple[Rotation, ...] = get_args(Rotation)

PRECISIONS: tuple[str, ...] = ("float32", "float16", "int8", "int4", "binary")

Engine = Literal["auto", "torch-fp32", "torch-bf16", "torch-fp16", "openvino-bf16", "openvino-fp32", "openvino-int8"]
ENGINES: tuple[Engine, ...] = get_args(Engine)

LEXICAL: tuple[Literal["bm25", "bm25-stemmed"], ...] = ("bm25", "bm25-stemmed")
FUSED = "+bm25"
"""The end of the name of a model's fusion with BM25."""

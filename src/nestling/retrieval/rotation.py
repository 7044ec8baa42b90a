"""Rotate embeddings so that their first components carry the most: fitted on documents, written into the model."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nestling.errors import InputError
from nestling.retrieval.vectors import ROWS_AT_ONCE

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense
    from torch import nn

EMBEDDING = "sentence_embedding"
COMPLETION = 0.1
"""Share of the documents' mean square against that of the queries; 0.03 to 0.3 are level."""


def fit_rotation(documents: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the (dim, dim) float32 rotation after which prefixes of (n, dim) documents keep the most of their length.

    The principal axes of the rows as they are, without centring: a shift would change cosines, a rotation about the
    origin leaves them at full size. No other rotation keeps more: Eckart and Young 1936, "The approximation of one
    matrix by another of lower rank". InputError: no row, no column, or a number that is not finite.
    """
    if documents.ndim != 2 or 0 in documents.shape:
        raise InputError(f"a rotation needs embeddings of documents, (n, dim); these are of shape {documents.shape}")
    moment = np.zeros((documents.shape[1], documents.shape[1]))
    for start in range(0, len(documents), ROWS_AT_ONCE):
        rows = documents[start : start + ROWS_AT_ONCE].astype(np.float64)
        wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(wrong):
            raise InputError(f"row {start + wrong[0]} of the documents' embeddings holds numbers that are not finite")
        moment += rows.T @ rows
    return principal_axes(moment).astype(np.float32)


def fit_search_rotation(queries: NDArray[np.float32], documents: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rotation for search: the axes along which training queries differ, completed by those of documents."""
    rows = [queries / np.sqrt(max(len(queries), 1)), documents * np.sqrt(COMPLETION / max(len(documents), 1))]
    return fit_rotation(np.concatenate(rows))


def principal_axes(moment: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the eigenvectors of a symmetric (dim, dim) matrix as columns, the strongest first, float64, orthogonal."""
    _, axes = np.linalg.eigh(moment)
    axes = axes[:, ::-1]
    # The sign of an axis is the solver's whim: the largest component in magnitude becomes positive.
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    return np.asarray(axes * np.where(largest < 0, -1.0, 1.0))


def rotated(embeddings: NDArray[np.float32], rotation: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `embeddings @ rotation`, (n, new dim) float32, the same for equal rows wherever they stand."""
    # In float64, as the last bit of a product depends on the rows beside it, and equal documents would rank by chance.
    rotated_rows = np.empty((len(embeddings), rotation.shape[1]), dtype=np.float32)
    exact = rotation.astype(np.float64)
    for start in range(0, len(embeddings), ROWS_AT_ONCE):
        rotated_rows[start : start + ROWS_AT_ONCE] = embeddings[start : start + ROWS_AT_ONCE].astype(np.float64) @ exact
    return rotated_rows


def add_rotation(model: SentenceTransformer, rotation: NDArray[np.float32]) -> Dense:
    """Write an orthogonal (dim, dim) rotation into a model, in place, so that it gives `embeddings @ rotation`.

    A linear layer that ends the model already (before the vectors are brought to length 1) takes the rotation in;
    otherwise `append_linear` adds one. Returns the layer that now rotates. InputError: not orthogonal, or of another
    size than the model's full one.
    """
    import torch

    with model.truncate_embeddings(None):
        full = int(model.get_embedding_dimension() or 0)
    if rotation.shape != (full, full):
        raise InputError(f"a rotation of shape {rotation.shape} does not fit a model of {full} dims")
    exact = rotation.astype(np.float64)
    # Not <=, which NaN would pass.
    if not np.abs(exact.T @ exact - np.eye(full)).max() < 1e-3:
        raise InputError("the rotation is not orthogonal, so it would change cosines")
    last = list(model)[place_of_last(model) - 1]
    if not _is_linear(last, full):
        return append_linear(model, rotation)
    weight = last.linear.weight
    with torch.no_grad():
        weight.copy_(torch.from_numpy(exact.T @ weight.detach().double().cpu().numpy()))
    return last


def append_linear(model: SentenceTransformer, matrix: NDArray[np.float32]) -> Dense:
    """Add a linear layer by a (dim, new dim) matrix, in place, before what brings vectors to length 1; return it."""
    import torch
    from sentence_transformers.sentence_transformer.modules import Dense

    layer = Dense(*matrix.shape, bias=False, activation_function=torch.nn.Identity())
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    layer.to(device=model.device, dtype=torch.float32 if parameter is None else parameter.dtype)
    with torch.no_grad():
        layer.linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(matrix.T)))
    modules = list(model._modules.items())
    kwargs = model.module_kwargs or {}
    modules.insert(place_of_last(model), ("", layer))
    # Names are places; what a module is to be called with is kept under its name.
    model._modules = OrderedDict((str(i), module) for i, (_, module) in enumerate(modules))
    model.module_kwargs = OrderedDict((str(i), kwargs[name]) for i, (name, _) in enumerate(modules) if name in kwargs)
    layer.train(model.training)
    return layer


def place_of_last(model: SentenceTransformer) -> int:
    """Return the place for one more layer: the end, or before a last module that brings vectors to length 1."""
    from sentence_transformers.sentence_transformer.modules import Normalize

    last = list(model)[-1]
    return len(model) - (isinstance(last, Normalize) and last.module_output_name == EMBEDDING)


def _is_linear(module: nn.Module, size: int) -> bool:
    import torch
    from sentence_transformers.sentence_transformer.modules import Dense

    return (
        isinstance(module, Dense)
        and type(module.linear) is torch.nn.Linear
        and not module.bias
        and isinstance(module.activation_function, torch.nn.Identity)
        and not module.use_residual
        and module.module_output_name == EMBEDDING
        and module.out_features == size
    )

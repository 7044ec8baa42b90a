"""Rotate embeddings so that their first components carry the most: fitted on documents, written into the model."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nestling.errors import InputError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense
    from torch import nn

ROWS_AT_ONCE = 16384
EMBEDDING = "sentence_embedding"
COMPLETION = 0.1
"""Share of the documents' mean square against that of the queries; 0.03 to 0.3 are level."""


def fit_rotation(documents: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rotation after which each prefix of the documents holds as much of their length as it can.

    The principal axes of the rows as they are, without centring: a shift would change cosines, a rotation about the
    origin leaves them at full size. With fewer rows than dims the axes beyond the rows' span are any that complete it.
    That no other rotation keeps more: Eckart and Young 1936, "The approximation of one matrix by another of lower
    rank".

    Args:
        documents: (n, dim) float, embeddings of typical documents, as they are compared (for cosines: of length 1).

    Returns:
        (dim, dim) float32, orthogonal. `documents @ rotation` has columns of falling mean square. The component
        of an axis that is largest in magnitude is positive, so that equal data give equal signs.

    Raises:
        InputError: there is no row or no column, or a number is not finite.
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
    """Return the rotation for search: the axes along which queries differ, completed by those of documents.

    What a query tells documents apart by lies where queries are, so small prefixes find more by these axes.

    Args:
        queries: (n_queries, dim) float, of training queries.
        documents: (n_documents, dim) float, of training documents.

    Returns:
        (dim, dim) float32, orthogonal, as `fit_rotation`.

    Raises:
        InputError: as there.
    """
    rows = [queries / np.sqrt(max(len(queries), 1)), documents * np.sqrt(COMPLETION / max(len(documents), 1))]
    return fit_rotation(np.concatenate(rows))


def principal_axes(moment: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the eigenvectors of a symmetric (dim, dim) matrix as columns, the strongest first, float64, orthogonal.

    The component of each that is largest in magnitude is positive.
    """
    _, axes = np.linalg.eigh(moment)
    axes = axes[:, ::-1]
    # The sign of an axis is the solver's whim.
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    signed: NDArray[np.float64] = axes * np.where(largest < 0, -1.0, 1.0)
    return signed


def rotated(embeddings: NDArray[np.float32], rotation: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `embeddings @ rotation`, (n, new dim) float32, the same for equal rows wherever they stand.

    Computed in float64: the last bit of a product depends on the rows beside it (the edge of a matrix runs other code),
    and equal documents would then rank in an order of chance.
    """
    rotated_rows = np.empty((len(embeddings), rotation.shape[1]), dtype=np.float32)
    exact = rotation.astype(np.float64)
    for start in range(0, len(embeddings), ROWS_AT_ONCE):
        rotated_rows[start : start + ROWS_AT_ONCE] = embeddings[start : start + ROWS_AT_ONCE].astype(np.float64) @ exact
    return rotated_rows


def add_rotation(model: SentenceTransformer, rotation: NDArray[np.float32]) -> Dense:
    """Write a rotation into a model, in place, so that it gives `embeddings @ rotation` from now on.

    A linear layer that ends the model already (before the vectors are brought to length 1) takes the rotation in;
    otherwise `append_linear` adds one. Saved, the model is loaded by plain sentence-transformers.

    Args:
        rotation: (dim, dim) orthogonal, of the model's full size.

    Returns:
        the layer that now rotates.

    Raises:
        InputError: the rotation is not of the model's size, or not orthogonal.
    """
    import torch

    full = _full_size(model)
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
    """Add a linear layer at the model's end, in place, but before vectors are brought to length 1.

    Args:
        matrix: (dim, new dim); the model gives `embeddings @ matrix`, at length 1 where it gave such before.

    Returns:
        the layer: sentence-transformers' Dense, without bias, its activation the identity; on the model's device, in
        its precision.
    """
    import torch
    from sentence_transformers.sentence_transformer.modules import Dense

    before, after = matrix.shape
    layer = Dense(before, after, bias=False, activation_function=torch.nn.Identity())
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    layer.to(device=model.device, dtype=torch.float32 if parameter is None else parameter.dtype)
    with torch.no_grad():
        layer.linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(matrix.T)))
    place = place_of_last(model)
    modules = list(model._modules.items())
    kwargs = model.module_kwargs or {}
    modules.insert(place, ("", layer))
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


def _full_size(model: SentenceTransformer) -> int:
    with model.truncate_embeddings(None):
        return int(model.get_embedding_dimension() or 0)

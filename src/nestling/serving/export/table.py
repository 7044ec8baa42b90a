"""Export of a static model: its table with the linear layers behind it multiplied in, in float32 or int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize

from nestling.errors import InputError
from nestling.models.exported_encoder import TABLE


def write_table(model: SentenceTransformer, folder: Path, *, precision: str) -> None:
    """Write `table.safetensors`.

    A linear layer without a bias takes the mean of rows to the mean of the rows that it makes, so it is multiplied
    into the table; bringing to length 1 comes last in the runtime, wherever it stands among such layers.

    Args:
        precision: `fp32`, or `int8` with one scale a row.
    """
    if precision not in ("fp32", "int8"):
        raise InputError(f"a static model's table is exported in fp32 or int8, not in {precision}")
    rows = model[0].embedding.weight.detach().cpu().double().numpy()
    for place, module in enumerate(list(model)[1:], 1):
        if isinstance(module, Normalize) and module.module_output_name == module.module_input_name:
            continue
        linear = (
            isinstance(module, Dense)
            and module.linear.bias is None
            and isinstance(module.activation_function, torch.nn.Identity)
            and not module.use_residual
        )
        if not linear:
            what = f"module {place} of the static model is a {type(module).__name__} that is not linear"
            raise InputError(f"{what}, which cannot be exported")
        rows = rows @ module.linear.weight.detach().cpu().double().numpy().T
    rows = rows[:, : model.truncate_dim]
    arrays: dict[str, NDArray[Any]] = {"rows": np.ascontiguousarray(rows, dtype=np.float32)}
    if precision == "int8":
        whole_rows, scales = int8_rows(rows)
        arrays = {"rows": whole_rows, "scales": scales[:, 0]}
    save_file(arrays, folder / TABLE)


def int8_rows(rows: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return a table in int8, and the scale of each row, (n, 1): its largest magnitude over 127."""
    scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    return np.rint(rows / np.where(scales > 0, scales, 1)).astype(np.int8), scales.astype(np.float32)

"""The fastest arithmetic for a model and its loss on this machine: unpadded texts, CUDA graphs, mixed precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestling.models.precision import Precision

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn


def settle(model: SentenceTransformer, loss: nn.Module, precision: Precision, *, processes: int) -> tuple[bool, str]:
    """Set a model and its loss up for the fastest arithmetic of that precision on this machine.

    On a CPU:

    - plain attention, since the backward pass of torch's fused one takes longer;
    - weights cast once and hidden states kept in bf16, where autocast would cast in every layer; master weights stay
      float32;
    - all texts of a batch in one row (unpadded.py) instead of two padded passes.

    On one GPU the contrastive loss runs all of the transformer in that type, its passes as CUDA graphs
    (cuda_graphs.py): autocast alone is no faster there than the library's trainer in float32.

    Args:
        processes: that train together; with several, autocast it is, since only the wrapped model synchronises them.

    Returns:
        whether the trainer is to autocast, and a remark for the log; empty where nothing was changed.
    """
    import torch

    from nestling.training.fast.cuda_graphs import GraphEncoder, can_capture
    from nestling.training.fast.unpadded import can_unpad
    from nestling.training.losses.encoding import EncodingLoss

    transformer = getattr(model[0], "model", None)
    switch = getattr(transformer, "set_attn_implementation", None)
    if precision.name not in ("bf16", "fp32") or switch is None:
        return precision.name != "fp32", ""
    ours = loss if processes == 1 and isinstance(loss, EncodingLoss) else None
    if torch.cuda.is_available():
        if ours is None or not can_capture(model):
            return precision.name != "fp32", ""
        ours.compute_dtype = torch.bfloat16 if precision.name == "bf16" else torch.float32
        ours.graphs = GraphEncoder(model, ours.compute_dtype)
        return False, "weights in float32, passes captured as CUDA graphs"
    unpadded = ours is not None and can_unpad(model)
    if precision.name == "fp32":
        if ours is not None and unpadded:
            ours.compute_dtype, ours.unpadded = torch.float32, True
        return False, "texts unpadded in one row" if unpadded else ""
    switch("eager")
    if ours is None:
        return True, "plain attention"
    ours.compute_dtype, ours.unpadded = torch.bfloat16, unpadded
    remark = "plain attention, hidden states in bf16, weights in float32"
    return False, remark + (", texts unpadded in one row" if unpadded else "")

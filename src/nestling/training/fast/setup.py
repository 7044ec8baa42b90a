"""The fastest arithmetic for a model and its loss on this machine: unpadded texts, CUDA graphs, mixed precision."""

from __future__ import annotations

import gc
import resource
import sys

import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from nestling.models.precision import Precision
from nestling.training.fast.cuda_graphs import GraphEncoder, can_capture
from nestling.training.fast.unpadded import can_unpad
from nestling.training.losses.contrastive import EncodingLoss


def settle(model: SentenceTransformer, loss: nn.Module, precision: Precision, *, processes: int) -> tuple[bool, str]:
    """Set a model and its loss up for the fastest arithmetic of that precision on this machine.

    On a CPU: plain attention, since the backward pass of torch's fused one takes longer; weights cast once and hidden
    states kept in bf16, where autocast would cast in every layer; all texts of a batch in one row (unpadded.py). On one
    GPU: all of the transformer in that type, its passes as CUDA graphs (cuda_graphs.py). With several processes:
    autocast, since only the wrapped model synchronises them.

    Returns:
        whether the trainer is to autocast, and a remark for the log; empty where nothing was changed.
    """
    transformer = getattr(model[0], "model", None)
    switch = getattr(transformer, "set_attn_implementation", None)
    half = precision.name == "bf16"
    if precision.name not in ("bf16", "fp32") or switch is None:
        return precision.name != "fp32", ""
    ours = loss if processes == 1 and isinstance(loss, EncodingLoss) else None
    dtype = torch.bfloat16 if half else torch.float32
    if torch.cuda.is_available():
        if ours is None or not can_capture(model):
            return half, ""
        ours.compute_dtype, ours.graphs = dtype, GraphEncoder(model, dtype)
        return False, "weights in float32, passes captured as CUDA graphs"
    unpadded = ours is not None and can_unpad(model)
    if half:
        switch("eager")
    if ours is None:
        return half, "plain attention" if half else ""
    if half or unpadded:
        ours.compute_dtype, ours.unpadded = dtype, unpadded
    remarks = ["plain attention, hidden states in bf16, weights in float32"] if half else []
    return False, ", ".join(remarks + (["texts unpadded in one row"] if unpadded else []))


def forget_peak() -> None:
    """Begin anew to count a GPU's peak, without what earlier trainings of this process left. A process has but one."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int:
    """Return bytes at most: reserved of the GPU since `forget_peak` where there is one, else of the whole process."""
    if torch.cuda.is_available():
        # Reserved, since what CUDA graphs hold counts as allocated only while they are captured.
        return int(torch.cuda.max_memory_reserved())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

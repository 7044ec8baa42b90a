"""Which arithmetic to train in, by what the machine reports, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nestling.errors import InputError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Setting = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Precision:
    """The chosen arithmetic (`fp32`, or autocast to `bf16` or `fp16`; weights stay float32) and the reason in words."""

    name: str
    reason: str


def choose_precision(setting: Setting) -> Precision:
    """Settle `auto`, and check that the machine can do what was asked for.

    Raises:
        InputError: `fp16` without a GPU, which torch does not train in.
    """
    import torch

    on_gpu = torch.cuda.is_available()
    if setting == "fp16" and not on_gpu:
        raise InputError("precision fp16 needs a GPU; choose bf16, fp32 or auto")
    if setting != "auto":
        return Precision(setting, "as asked")
    if on_gpu:
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16", f"{torch.cuda.get_device_name()} computes in bf16")
        return Precision("fp16", f"{torch.cuda.get_device_name()} has no bf16")
    abilities = torch.cpu.get_capabilities()
    found = [name for name in ("amx_bf16", "avx512_bf16") if abilities.get(name)]
    if found:
        return Precision("bf16", f"the CPU reports {' and '.join(found)}")
    return Precision("fp32", "the CPU reports no bf16 instructions")


def choose_attention(model: SentenceTransformer, precision: Precision) -> str | None:
    """Switch a model to the attention that trains fastest, and say in words which; None where nothing was changed.

    On a CPU in bf16 the backward pass of torch's fused attention takes twice as long as the plain one's, for short
    texts and long: measured with this repository's default model, 64 x 23 and 32 x 184 tokens, on AMX.
    """
    import torch

    transformer = getattr(model[0], "model", None)
    switch = getattr(transformer, "set_attn_implementation", None)
    if torch.cuda.is_available() or precision.name != "bf16" or switch is None:
        return None
    switch("eager")
    return "plain attention, whose backward pass is the faster on a CPU in bf16"

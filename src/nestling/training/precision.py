"""Which arithmetic to train in, by what the machine reports, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nestling.errors import InputError

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

"""Choice of the arithmetic to train and encode in, and memory settings of the process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nestling.errors import InputError

Setting = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Precision:
    """The chosen arithmetic (`fp32`, or autocast to `bf16` or `fp16`; weights stay float32) and the reason in words."""

    name: str
    reason: str


def choose_precision(setting: Setting) -> Precision:
    """Settle `auto`; refuse `fp16` without a GPU, which torch does not train in."""
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
    instructions = [name for name in ("amx_bf16", "avx512_bf16") if abilities.get(name)]
    if instructions:
        return Precision("bf16", f"the CPU reports {' and '.join(instructions)}")
    return Precision("fp32", "the CPU reports no bf16 instructions")


def keep_freed_memory() -> bool:
    """Keep glibc from handing memory back to the system after every step, which costs page faults; return success."""
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(
            libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, 2**31 - 1) and libc.mallopt(top_pad, 2**28)
        )
    except (OSError, AttributeError):
        return False


def give_back_freed_memory() -> None:
    """Hand what lies free in the C library back to the system: holes that no later batch fits into."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def bound_kernel_cache() -> None:
    """Let oneDNN keep 64 compiled kernels in place of 1,024, unless the environment says so; call before its first."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def resident_memory() -> int:
    """Return how many bytes of memory this process holds; 0 where the system is not Linux."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * resource.getpagesize()

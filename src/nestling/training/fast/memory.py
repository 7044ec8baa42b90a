"""Peak memory of a training."""

from __future__ import annotations

import gc
import resource
import sys


def forget_peak() -> None:
    """Begin anew to count a GPU's peak, without what earlier trainings of this process left. A process has but one."""
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int:
    """Return bytes at most: reserved of the GPU since `forget_peak` where there is one, else of the whole process."""
    import torch

    if torch.cuda.is_available():
        # Reserved, since what CUDA graphs hold counts as allocated only while they are captured.
        return int(torch.cuda.max_memory_reserved())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

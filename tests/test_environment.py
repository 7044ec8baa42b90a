"""What the environment is told before torch reads it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from nestling.environment import grow_gpu_memory


@pytest.mark.skipif(platform.system() != "Linux", reason="torch does it on Linux alone")
@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_pieces_of_a_gpus_memory_grow_unless_the_environment_says_otherwise(name: str):
    environment: dict[str, str] = {}
    grow_gpu_memory(environment)
    assert environment == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    told = {name: "max_split_size_mb:64"}
    grow_gpu_memory(told)
    assert told == {name: "max_split_size_mb:64"}


def test_the_command_line_says_so_before_torch_is_there():
    script = """
import os, sys
from nestling.cli import main
os.environ.pop("PYTORCH_ALLOC_CONF", None)
try:
    main(["--version"])
except SystemExit:
    pass
print("torch" in sys.modules, os.environ.get("PYTORCH_ALLOC_CONF"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    expected = "expandable_segments:True" if platform.system() == "Linux" else "None"
    assert done.stdout.splitlines()[-1] == f"False {expected}"

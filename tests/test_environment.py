"""What the environment is told before torch reads it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from nestling.environment import grow_gpu_memory, share_cores


@pytest.mark.skipif(platform.system() != "Linux", reason="torch does it on Linux alone")
@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_pieces_of_a_gpus_memory_grow_unless_the_environment_says_otherwise(name: str):
    environment: dict[str, str] = {}
    grow_gpu_memory(environment)
    assert environment == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    told = {name: "max_split_size_mb:64"}
    grow_gpu_memory(told)
    assert told == {name: "max_split_size_mb:64"}


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "5"), ("KMP_BLOCKTIME", "1")]
)
def test_threads_that_wait_sleep_unless_the_environment_says_otherwise(name: str, value: str):
    environment: dict[str, str] = {}
    share_cores(environment)
    assert environment == {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
    told = {name: value}
    share_cores(told)
    assert told == {name: value}


SCRIPT = """
import os, sys
from nestling.cli.app import main
try:
    main(["--version"])
except SystemExit:
    pass
print("torch" in sys.modules, *(os.environ.get(name) for name in sys.argv[1:]))
"""
NAMES = ("PYTORCH_ALLOC_CONF", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "passive 1000"), ({"OMP_WAIT_POLICY": "active"}, "active None"), ({"GOMP_SPINCOUNT": "7"}, "None 7")],
)
def test_the_command_line_says_so_before_torch_is_there(given: dict[str, str], expected: str):
    environment = {name: value for name, value in os.environ.items() if name not in (*NAMES, "KMP_BLOCKTIME")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *NAMES], capture_output=True, text=True, check=True, env={**environment, **given}
    )
    memory = "expandable_segments:True" if platform.system() == "Linux" else "None"
    assert done.stdout.splitlines()[-1] == f"False {memory} {expected}"

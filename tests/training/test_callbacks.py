"""What happens beside the steps of a training."""

from __future__ import annotations

import mmap
import os

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from nestling.models.precision import bound_kernel_cache, resident_memory
from nestling.training import callbacks
from nestling.training.callbacks import GiveBackMemory

MB = 2**20


def test_memory_is_given_back_once_much_more_is_kept_than_a_step_needs(monkeypatch: pytest.MonkeyPatch, tmp_path):
    given: list[int] = []
    steps: list[int] = []
    resident = 500 * MB

    def give_back() -> None:
        nonlocal resident
        given.append(len(steps))
        resident = 500 * MB

    monkeypatch.setattr(callbacks, "give_back_freed_memory", give_back)
    monkeypatch.setattr(callbacks, "resident_memory", lambda: resident)
    callback = GiveBackMemory()
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    callback.on_train_begin(arguments, TrainerState(), TrainerControl())
    # 200 MB are needed, so 1.5 times that and 128 MB more may be kept: 428 MB.
    for grown in (200, 300, 428, 429, 350, 500, 653, 654, 100):
        steps.append(grown)
        resident = (500 + grown) * MB
        callback.on_step_end(arguments, TrainerState(), TrainerControl())
    # After step 4 a step needs 350 MB, so 653 MB may be kept.
    assert given == [0, 4, 8]


def test_the_process_tells_how_much_memory_it_holds():
    before = resident_memory()
    if not before:
        pytest.skip("this system does not tell")
    # Fresh from the system: what the C library hands out may be in memory already.
    with mmap.mmap(-1, 64 * MB) as block:
        for place in range(0, len(block), 4096):
            block[place] = 1
        assert resident_memory() - before >= 32 * MB


def test_kernels_are_kept_within_bounds_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    # Set first, so that it is put back as it was.
    monkeypatch.setenv(name, "7")
    bound_kernel_cache()
    assert os.environ[name] == "7"
    monkeypatch.delenv(name)
    bound_kernel_cache()
    assert os.environ[name] == "64"

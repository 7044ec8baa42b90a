"""What happens beside the steps of a training."""

from __future__ import annotations

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from nestling.training import callbacks
from nestling.training.callbacks import GiveBackMemory


def test_freed_memory_is_given_back_every_so_many_steps(monkeypatch: pytest.MonkeyPatch, tmp_path):
    given: list[int] = []
    state = TrainerState()
    monkeypatch.setattr(callbacks, "give_back_freed_memory", lambda: given.append(state.global_step))
    callback = GiveBackMemory(steps=4)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    for step in range(1, 10):
        state.global_step = step
        callback.on_step_end(arguments, state, TrainerControl())
    assert given == [4, 8]

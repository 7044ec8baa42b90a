"""Callbacks of a training: progress, checkpoints by the clock, the best weights, an early end."""

from __future__ import annotations

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState

from nestling import atomic
from nestling.errors import InputError
from nestling.models.load import save_model
from nestling.models.precision import give_back_freed_memory, resident_memory
from nestling.progress import TrainingProgress

logger = logging.getLogger(__name__)


class Progress(TrainerCallback):  # type: ignore[misc]
    """Report every step, prepare every epoch, and stop a training whose loss is no number any more."""

    def __init__(
        self,
        n_examples: int,
        metric: str,
        report: Callable[[TrainingProgress], None],
        refresh: Sequence[Callable[[int], None]] = (),
    ) -> None:
        self.n_examples = n_examples
        self.metric = metric
        self.report = report
        self.refresh = refresh
        self.loss: float | None = None
        self.dev: float | None = None
        self.seconds = self.examples = 0.0
        self._first_epoch = self._clock = 0.0

    def on_train_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        self._first_epoch = float(state.epoch or 0)

    def on_epoch_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        for each in self.refresh:
            # A little more than the epoch so far, as 2.0 may be stored as 1.9999.
            each(int((state.epoch or 0) + 1e-6))

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        # Evaluations and checkpoints lie between the end of a step and the next begin: they are not training.
        self._clock = time.perf_counter()

    def on_step_end(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        epoch = float(state.epoch or 0)
        self.seconds += time.perf_counter() - self._clock
        self.examples = (epoch - self._first_epoch) * self.n_examples
        speed = self.examples / self.seconds if self.seconds else 0.0
        left = (state.max_steps - state.global_step) * args.train_batch_size * args.world_size
        seconds_left = left / speed if speed else math.inf
        self.report(
            TrainingProgress(state.global_step, state.max_steps, epoch, self.loss, speed, seconds_left, self.dev)
        )

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: dict[str, float], **_: Any) -> None:
        self.loss = logs.get("loss", self.loss)
        self.dev = logs.get(f"eval_{self.metric}", self.dev)
        if not math.isfinite(self.loss or 0):
            raise InputError(
                f"the training loss is {self.loss} at step {state.global_step}: it diverged; "
                "lower training.learning_rate or set training.precision to fp32"
            )


class ClockCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Ask for a checkpoint when the last is older than `seconds`, at the end of an epoch, and on interruption."""

    def __init__(self, seconds: float, interrupted: threading.Event) -> None:
        self.seconds = seconds
        self.interrupted = interrupted
        self._last = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        stop, save = self.interrupted.is_set(), time.monotonic() - self._last >= self.seconds
        if args.world_size > 1:
            # Clocks and signals differ between processes, what they do next must not.
            wishes = torch.tensor([stop, save], dtype=torch.int32, device=args.device)
            torch.distributed.all_reduce(wishes, op=torch.distributed.ReduceOp.MAX)
            stop, save = map(bool, wishes.tolist())
        if stop:
            self.interrupted.set()
            control.should_training_stop = True
        if stop or save:
            control.should_save = True

    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if self.interrupted.is_set():
            # The trainer ends an epoch on any stop; an evaluation now would pass for that of the whole epoch.
            control.should_evaluate = False
        else:
            control.should_save = True

    def on_save(self, *_: Any, **__: Any) -> None:
        self._last = time.monotonic()


class GiveBackMemory(TrainerCallback):  # type: ignore[misc]
    """Give freed memory back where much more is kept between steps than first steps after that have needed at most."""

    SPARE = 1.5
    MARGIN = 128 * 2**20

    def __init__(self) -> None:
        self.needed = self.least = 0
        self.fresh = False

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.fresh = True
        give_back_freed_memory()
        self.least = resident_memory()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        grown = resident_memory() - self.least
        if self.fresh:
            self.needed = max(self.needed, grown)
        self.fresh = False
        if grown > self.SPARE * self.needed + self.MARGIN:
            self.on_train_begin()


class BestWeights(TrainerCallback):  # type: ignore[misc]
    """Keep the best weights on dev in a folder, and end a training after `patience` epochs without better ones.

    The trainer's own `load_best_model_at_end` and early stopping would tie checkpoints to evaluations.
    """

    def __init__(self, folder: Path, metric: str, patience: int | None) -> None:
        self.folder = folder
        self.metric = metric
        self.patience = patience

    @property
    def figures(self) -> dict[str, float]:
        """Epoch, step and dev figures of the best evaluation; empty before the first."""
        path = self.folder / "best.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def is_over(self, state: TrainerState) -> bool:
        """Return whether a training in this state is to end, though it has steps left."""
        if self.patience is None or state.global_step >= state.max_steps:
            return False
        return evaluations_since_best(state.log_history, f"eval_{self.metric}") >= self.patience

    def was_over(self, checkpoint: Path) -> bool:
        """Return whether a training was to end at a checkpoint, and lost its process before it did."""
        return self.is_over(TrainerState.load_from_json(str(checkpoint / "trainer_state.json")))

    def on_evaluate(
        self, args: Any, state: TrainerState, control: Any, metrics: dict[str, float], model: Any = None, **_: Any
    ) -> None:
        if self.is_over(state):
            control.should_training_stop = True
        value = metrics[f"eval_{self.metric}"]
        if not state.is_world_process_zero or value <= self.figures.get(self.metric, -math.inf):
            return
        with atomic.new_folder(self.folder) as temporary:
            save_model(model, temporary / "model")
            figures = {k.removeprefix("eval_"): v for k, v in metrics.items() if k.startswith("eval_dev_")}
            atomic.write_json(temporary / "best.json", {"epoch": state.epoch, "step": state.global_step, **figures})


def evaluations_since_best(history: Sequence[dict[str, float]], metric: str) -> int:
    """Return how many evaluations in a trainer's log follow the best one, the first of equals; 0 where it has none."""
    values = [entry[metric] for entry in history if metric in entry]
    return len(values) - 1 - values.index(max(values)) if values else 0


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Give an event that the first Ctrl-C (or SIGTERM) sets; a second Ctrl-C interrupts at once, as ever.

    Outside the main thread, where Python allows no signal handlers, the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: FrameType | None) -> None:
        logger.warning("stopping after this step; once more to stop at once")
        event.set()
        restore()

    for number in before:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        restore()

"""The stock trainer against ours: the same model, pairs and epochs, in turn, in one run.

    python benchmarks/training.py --quick

Two questions, for titles and for descriptions. Speed: pairs a second of sentence-transformers' trainer as a script
would call it (float32, its own sampler, collator and loss), and of ours (bf16 where the machine has it, hidden dropout
off), whole steps with the making of their batches, both after a warm-up; and, as the floor on a CPU, of the bare matrix
products of our batches. On a GPU also that of a script that asks the stock trainer for bf16. Same training: fed with
the same batches in the same order, dropout off on both sides, how far the losses are apart step by step.

Ours has its threads wait as the command line sets them (OMP_WAIT_POLICY, GOMP_SPINCOUNT), unless these are set. Beside
each ratio stands how many cores other processes kept busy meanwhile; --busy N adds N that do nothing else.

The last line is `training: RATIO`, the smaller of the two speed-ups. With --quick there is neither floor nor comparison
of losses.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nestling.config.names import DEFAULT_MODEL
from nestling.config.training import TrainingSettings
from nestling.environment import grow_gpu_memory, hardware, share_cores, versions
from nestling.judgments.sources import load_judgments
from nestling.judgments.table import Judgments
from nestling.judgments.toolshed import generate
from nestling.models.load import find_model, load_model, no_bars
from nestling.models.precision import choose_precision, keep_freed_memory
from nestling.training.fast.partial_embedding import train_active_rows
from nestling.training.fast.setup import forget_peak, peak_memory, settle
from nestling.training.inputs.contrastive import contrastive
from nestling.training.spec import TrainingSpec

REAL = Path(__file__).parents[2] / "shared" / "data" / "home-depot" / "train.csv.zip"
THRESHOLD = 2.5
LEARNING_RATE = 5e-5


def titles(pairs: int) -> Judgments:
    """Return pairs of queries and product titles, real ones where the data is there."""
    source = load_judgments(REAL) if REAL.exists() else generate(25_000, seed=0)
    return distinct(source.above(THRESHOLD), pairs)


def descriptions(pairs: int) -> Judgments:
    """Return pairs of queries and descriptions of about 190 tokens: the generated catalogue's, two to a document."""
    source = generate(25_000, seed=0).above(THRESHOLD)
    text = source.frame["title"] + ". " + source.frame["description"]
    longer = source.frame.with_columns((text + " " + source.frame["description"]).alias("document"))
    return distinct(Judgments.from_frame(longer, scale=(1, 3)), pairs)


def distinct(judgments: Judgments, pairs: int) -> Judgments:
    """Return pairs in which no query and no document comes twice, so that masks have nothing to do on either side."""
    frame = judgments.frame.with_columns(judgments.query_keys.alias("q"), judgments.document_keys.alias("d"))
    frame = frame.unique("q", keep="first", maintain_order=True).unique("d", keep="first", maintain_order=True)
    found = Judgments.from_frame(frame.drop("q", "d"), scale=(1, 3))
    return found.sample(min(pairs, len(found)), seed=0)


@dataclass
class Record:
    """What one side did: losses of all steps where they were asked for; steps a second; bytes of memory at most."""

    losses: list[float]
    speed: float
    peak: int


def train(side: str, judgments: Judgments, *, batch_size: int, steps: int, warm: int, same: bool) -> Record:
    """Run steps of the stock side or of ours; with `same`, on the same batches, without dropout, every loss noted.

    Args:
        steps, warm: all of them, and those before the clock starts.
    """
    import torch
    from sentence_transformers import SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    ours = side == "ours"
    forget_peak()
    settings = TrainingSettings(batch_size=batch_size)
    source = find_model(DEFAULT_MODEL)
    off = 0.0 if ours or same else None
    model = load_model(source, attention_dropout=off, hidden_dropout=off)
    spec = TrainingSpec(source, "mnrl", settings, THRESHOLD)
    inputs = contrastive(judgments, spec, model)
    if ours:
        examples, loss, collator = inputs.examples, inputs.loss, inputs.collator
        precision = choose_precision("auto")
        autocast, _ = settle(model, loss, precision, processes=1)
        if inputs.vocabulary is not None:
            train_active_rows(model, inputs.vocabulary)
        if not torch.cuda.is_available():
            keep_freed_memory()
    else:
        pairs = inputs.collator.pairs  # type: ignore[union-attr]
        from datasets import Dataset

        texts = [(pairs.queries[q], pairs.documents[d]) for q, d in zip(pairs.query, pairs.document, strict=True)]
        examples = Dataset.from_dict({"anchor": [q for q, _ in texts], "positive": [d for _, d in texts]})
        loss, collator = MultipleNegativesRankingLoss(model), None
        precision = choose_precision("bf16" if side == "stock-bf16" else "fp32")
        autocast = precision.name != "fp32"
    losses: list[float] = []
    clock: dict[int, float] = {}

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step in (warm, steps):
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                clock[state.global_step] = time.perf_counter()

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    class Trainer(SentenceTransformerTrainer):  # type: ignore[misc]
        def get_batch_sampler(self, dataset: Any, batch_size: int, drop_last: bool, **options: Any) -> Iterable[Any]:
            if inputs.sampler is not None and (ours or same):
                return inputs.sampler(batch_size, seed=settings.seed, processes=1)
            found: Iterable[Any] = super().get_batch_sampler(dataset, batch_size, drop_last, **options)
            return found

    with tempfile.TemporaryDirectory() as folder, no_bars():
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=LEARNING_RATE,
            logging_steps=1 if same else steps,
            save_strategy="no",
            use_cpu=not torch.cuda.is_available(),
            bf16=autocast and precision.name == "bf16",
            fp16=autocast and precision.name == "fp16",
            disable_tqdm=True,
            report_to="none",
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=examples,
            loss=loss,
            data_collator=collator,
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return Record(losses, (steps - warm) / (clock[steps] - clock[warm]), peak_memory())


def bare_products(judgments: Judgments, *, batch_size: int, steps: int, warm: int) -> Record:
    """Do the matrix products of our side's batches and nothing else, forwards and backwards, in its precision.

    Products alone: no softmax, norm, activation, optimizer or copy. What a training cannot get below on a CPU. On a GPU
    they are launched one by one from Python, which passes captured as CUDA graphs are not.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    source = find_model(DEFAULT_MODEL)
    model = load_model(source)
    config = model[0].model.config
    settings = TrainingSettings(batch_size=batch_size)
    inputs = contrastive(judgments, TrainingSpec(source, "mnrl", settings, THRESHOLD), model)
    assert inputs.collator is not None
    assert inputs.sampler is not None
    dtype = torch.bfloat16 if choose_precision("auto").name == "bf16" else torch.float32
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    weights = {
        (a, b): torch.randn(a, b, dtype=dtype, device=device)
        for a, b in ((hidden, hidden), (hidden, inner), (inner, hidden))
    }
    seconds: list[float] = []
    for rows in list(inputs.sampler(batch_size, seed=settings.seed, processes=1))[:steps]:
        batch = inputs.collator([{"row": row} for row in rows])
        work: list[tuple[torch.Tensor, torch.Tensor]] = []
        for column in ("anchor", "document"):
            n_texts, width = batch[f"{column}_input_ids"].shape
            tokens = n_texts * width
            for (a, b), times in (((hidden, hidden), 4), ((hidden, inner), 1), ((inner, hidden), 1)):
                x, y = (torch.randn(tokens, size, dtype=dtype, device=device) for size in (a, b))
                work += [(x, weights[a, b]), (y, weights[a, b].T), (x.T, y)] * times
            q = torch.randn(n_texts * heads, width, hidden // heads, dtype=dtype, device=device)
            p = torch.randn(n_texts * heads, width, width, dtype=dtype, device=device)
            work += [(q, q.transpose(1, 2)), (p, q)] * 3
        wait()
        start = time.perf_counter()
        for _ in range(config.num_hidden_layers):
            for left, right in work:
                torch.matmul(left, right)
        wait()
        seconds.append(time.perf_counter() - start)
    counted = seconds[min(warm, len(seconds) // 2) :]
    return Record([], len(counted) / sum(counted), 0)


def run(side: str, texts: str, *, batch_size: int, steps: int, same: bool) -> Record:
    """Run one side once."""
    judgments = {"titles": titles, "descriptions": descriptions}[texts](batch_size * steps)
    if side == "products":
        return bare_products(judgments, batch_size=batch_size, steps=steps, warm=warm_up(steps))
    return train(side, judgments, batch_size=batch_size, steps=steps, warm=warm_up(steps), same=same)


def warm_up(steps: int) -> int:
    """Return how many of the steps come before the clock starts."""
    return max(2, steps // 5)


def ask(side: str, texts: str, *, batch_size: int, steps: int, same: bool = False) -> Record:
    """Run one side in a process of its own, as its peak of memory is the process's, and return its figures."""
    command = [sys.executable, __file__, "--side", side, "--texts", texts]
    command += ["--batch-size", str(batch_size), "--steps", str(steps), *(["--same"] if same else [])]
    environment = dict(os.environ)
    if side == "ours":
        # As the command line has it.
        grow_gpu_memory(environment)
        share_cores(environment)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return Record(**json.loads(done.stdout.splitlines()[-1]))


class Others:
    """Counts how many cores other processes keep busy; where the system tells as Linux does, else the load alone."""

    def __init__(self) -> None:
        self.before = self._now()

    def __str__(self) -> str:
        (start, busy, own), (end, busy_now, own_now) = self.before, self._now()
        cores = ((busy_now - busy) - (own_now - own)) / (end - start)
        load = f"load {os.getloadavg()[0]:.1f}"
        return f"{load}, other processes on {max(0.0, cores):.1f} cores" if busy_now else load

    @staticmethod
    def _now() -> tuple[float, float, float]:
        try:
            ticks = list(map(int, Path("/proc/stat").read_text(encoding="ascii").split()[1:9]))
        except (OSError, ValueError):
            ticks = [0] * 8
        # All but idle (3), waiting for a disk (4), and what other guests of the host took (7).
        busy = sum(ticks[:3] + ticks[5:7]) / os.sysconf("SC_CLK_TCK")
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return time.perf_counter(), busy, sum(each.ru_utime + each.ru_stime for each in used)


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep so many cores busy meanwhile."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for each in running:
            each.kill()


def compare(
    texts: str, sides: Sequence[str], *, batch_size: int, steps: int, rounds: int, same_steps: int
) -> tuple[float, list[str]]:
    """Return the median speed-up of the last of `sides` over the first, over rounds, and the lines of the report."""
    records: dict[str, list[Record]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            records[side].append(ask(side, texts, batch_size=batch_size, steps=steps))
    speeds = {side: np.array([record.speed for record in each]) for side, each in records.items()}
    ours = speeds[sides[-1]]
    lines = [
        f"{texts:<13} {side:<10} {batch_size * np.median(speeds[side]):8.1f} pairs/s   peak "
        f"{max(record.peak for record in each) / 2**20:6.0f} MiB   ours {np.median(ours / speeds[side]):.1f} times"
        for side, each in records.items()
    ]
    if same_steps:
        fastest = ask("products", texts, batch_size=batch_size, steps=steps).speed
        lines.append(
            f"{texts:<13} bare matrix products of our batches: {batch_size * fastest:.1f} pairs/s, "
            f"{fastest / np.median(ours):.1f} times ours"
        )
        first, last = (
            np.array(ask(side, texts, batch_size=batch_size, steps=same_steps, same=True).losses)
            for side in (sides[0], sides[-1])
        )
        apart = np.abs(first - last)
        lines.append(
            f"{texts:<13} same batches, no dropout: loss apart by {apart.mean():.4f} on average, {apart.max():.4f} at "
            f"most, of {first.mean():.3f}, over {len(apart)} steps"
        )
    return float(np.median(ours / speeds[sides[0]])), lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="speed alone; under 50 seconds on two cores")
    parser.add_argument("--side", choices=["stock", "stock-bf16", "ours", "products"], help=argparse.SUPPRESS)
    parser.add_argument("--texts", choices=["titles", "descriptions"], help=argparse.SUPPRESS)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--busy", type=int, default=0, help="processes that keep a core busy each, meanwhile")
    parser.add_argument("--same", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.steps and options.steps <= warm_up(options.steps):
        parser.error("--steps needs 3 or more: the first are not counted")
    if options.side:
        sizes = {"batch_size": options.batch_size, "steps": options.steps}
        print(json.dumps(asdict(run(options.side, options.texts, **sizes, same=options.same))))
        return
    machine = hardware()
    gpus = list(machine["gpus"])
    sides = ["stock", "stock-bf16", "ours"] if gpus else ["stock", "ours"]
    sizes = {
        "titles": (options.batch_size, 6 if options.quick else 40),
        "descriptions": (16, 4) if options.quick else (32, 12),
    }
    if gpus:
        # Where a step takes milliseconds, and batches of most lengths are to be met before the clock.
        most = 150 if options.quick else 500
        sizes = {"titles": (options.batch_size, most), "descriptions": (32, most)}
    ratios = []
    on = ", ".join(gpus) or f"{machine['cores']} cores"
    print(f"{machine['processor']}, {on}, torch {versions()['torch']}; {choose_precision('auto').reason}")
    for texts, (batch_size, steps) in sizes.items():
        others = Others()
        with busy(options.busy):
            ratio, lines = compare(
                texts,
                sides,
                batch_size=batch_size,
                steps=options.steps or steps,
                rounds=1 if options.quick or gpus else 2,
                same_steps=0 if options.quick else 100 if gpus else 12,
            )
            meanwhile = str(others)
        ratios.append(ratio)
        print("\n".join(lines))
        print(f"{texts:<13} ratio {ratio:.1f}   {meanwhile}")
    print(f"training: {min(ratios):.1f}")


if __name__ == "__main__":
    main()

"""About how long a study will take here: characters to train on and to encode, by the speeds of a few timed batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from nestling.config.experiment import Experiment
from nestling.config.training import ConcatStatic, Distill, Rotate, TrainingSettings
from nestling.judgments.table import Judgments
from nestling.models.load import ModelSource, load_model
from nestling.training.spec import TrainingSpec

Clock = Callable[[], float]

BATCHES, WARM_UP, ENCODED, ENOUGH_SECONDS = 3, 8, 96, 2.0
"""Batches that are timed, or fewer once they took so many seconds; pairs of the one before them; texts encoded."""
CROP = 20
"""Characters of an invented query."""
PIECE = 9
"""Characters of text that take as long as a piece of the vocabulary between its special tokens."""
SCORED, MINED = 48, 3
"""Pairs that a cross-encoder scores for each query, its invented ones included; negatives it is trained with."""
TRAINING, EVALUATION, REPORT = 4.0, 1.5, 6.0
"""Seconds of a stage beside its texts: loading, saving, rotation, fusion, intervals, pictures."""
DOUBT = 0.1
"""Share of the whole that must be done until its measured time counts as much as the estimate."""


@dataclass(frozen=True)
class Rates:
    """Speeds of a model here in characters a second, through a training step and by encoding; its vocabulary's size."""

    trained: float
    encoded: float
    pieces: int = 0


def measure(
    base: ModelSource, judgments: Judgments, settings: TrainingSettings, *, clock: Clock = time.perf_counter
) -> Rates:
    """Time a few training steps and one call that encodes, of a base model on the study's own texts."""
    import torch

    from nestling.models.precision import bound_kernel_cache, choose_precision
    from nestling.models.torch_encoder import embed
    from nestling.training.fast.setup import settle
    from nestling.training.losses.contrastive import EncodingLoss

    bound_kernel_cache()
    model = load_model(base, attention_dropout=settings.attention_dropout, hidden_dropout=settings.hidden_dropout)
    if settings.max_seq_length:
        model.max_seq_length = settings.max_seq_length
    rows = np.linspace(0, len(judgments) - 1, min(settings.batch_size, len(judgments)), dtype=np.int64)
    sides = [judgments.frame[side].gather(rows).to_list() for side in ("query", "document")]
    documents = judgments.frame["document"].unique(maintain_order=True)
    texts = documents.gather_every(max(1, len(documents) // ENCODED)).to_list()
    embed(model, texts[:WARM_UP], kind="document")
    start = clock()
    embed(model, texts, kind="document")
    encoded = sum(map(len, texts)) / (clock() - start)

    loss = EncodingLoss(model)
    if settings.fast:
        settle(model, loss, choose_precision(settings.precision), processes=1)
    model.train()

    def step(pairs: int | None = None) -> None:
        columns = []
        for side in sides:
            features = {name: value for name, value in model.preprocess(side[:pairs]).items() if torch.is_tensor(value)}
            columns.append({name: features[name].to(model.device) for name in features if name != "token_type_ids"})
        torch.autograd.backward(torch.stack([vectors.float().sum() for vectors in loss.embedded(columns)]).sum())
        model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    with torch.random.fork_rng():
        # CUDA graphs are captured for a shape: the whole batch first.
        step(None if torch.cuda.is_available() else WARM_UP)
        start, taken, done = clock(), 0.0, 0
        while done < BATCHES and taken < ENOUGH_SECONDS:
            step()
            done, taken = done + 1, clock() - start
    trained = done * sum(len(text) for side in sides for text in side) / taken
    return Rates(trained, encoded, len(model.tokenizer))


class Texts:
    """Characters of the distinct texts of a table, or of a share of it: of all, and on average of one."""

    def __init__(self, judgments: Judgments, share: float = 1.0) -> None:
        self.judgments, self.share = judgments, share
        queries, documents = (judgments.frame[side].unique().str.len_chars() for side in ("query", "document"))
        self.n_queries, self.n_documents = share * len(queries), share * len(documents)
        self.queries, self.documents = share * float(queries.sum()), share * float(documents.sum())
        self.query, self.document = self.queries / self.n_queries, self.documents / self.n_documents
        self.all = self.queries + self.documents

    def pairs(self, above: float | None = None) -> float:
        """Return how many records there are, or are scored above `above`."""
        return self.share * len(self.judgments if above is None else self.judgments.above(above))


def trainings(spec: TrainingSpec, train: Texts, dev: Texts, rates: Rates) -> list[float]:
    """Return about how many seconds the trainings of a spec take, in the order in which `fit` makes them."""
    from nestling.training.inputs.contrastive import positives_above

    def seconds(*, trained: float = 0.0, encoded: float = 0.0) -> float:
        return trained / rates.trained + encoded / rates.encoded + TRAINING

    settings, step = spec.settings, spec.settings.finetune
    table = seconds(encoded=train.all + rates.pieces * PIECE)
    if step.start == "static":
        return [table]
    if step.start == "adapter":
        return [seconds(encoded=train.all + 2 * dev.all)]
    scored = step.loss in ("cosine", "cosent")
    pairs = train.pairs(None if scored else positives_above(train.judgments, spec))
    epoch = pairs * (train.query + (1 + step.negatives) * train.document)
    epoch += step.crops * train.n_documents * (CROP + train.document)
    kinds = {type(each) for each in settings.steps}
    # The base and the result are measured on dev beside the epochs.
    encoded = dev.all * (settings.epochs + 2) + train.documents * (step.batches == "similar")
    encoded += train.all * bool(kinds & {Rotate, ConcatStatic})
    parts = [seconds(trained=settings.epochs * epoch, encoded=encoded)]
    if Distill in kinds:
        pair = train.query + train.document
        teacher = 2 * (1 + MINED) * train.pairs() * pair
        pupil = 3 * train.n_queries * (train.query + 6 * train.document)
        parts.append(seconds(trained=teacher, encoded=train.all + SCORED * train.n_queries * pair))
        parts.append(seconds(trained=pupil, encoded=3 * dev.all))
    return [*parts, table] if ConcatStatic in kinds else parts


def plan(
    experiment: Experiment,
    judgments: Judgments,
    bases: Mapping[str, ModelSource],
    specs: Mapping[str, TrainingSpec],
    done: Collection[str],
) -> dict[str, list[float]]:
    """Return the stages of a run in order, and about how many seconds each takes here; none for those in `done`."""
    sides = experiment.split
    train, dev, test = (Texts(judgments, share) for share in (1 - sides.dev - sides.test, sides.dev, sides.test))

    @cache
    def rates(base: ModelSource) -> Rates:
        return measure(base, judgments, experiment.training)

    stages: dict[str, list[float]] = {"inspect": [EVALUATION], "split": []}
    for name, spec in specs.items():
        new = f"model {name}" not in done
        stages[f"train {name}"] = trainings(spec, train, dev, rates(bases[name])) if new else []
    for variant in experiment.variants:
        name = variant.name
        new = f"evaluation {name}" not in done
        # A table encodes in next to no time.
        encoded = 0.0 if variant.recipe == "static" else test.all + dev.all
        stages[f"evaluate {name}"] = [encoded / rates(bases[name]).encoded + EVALUATION] if new else []
    return stages | {f"evaluate {name}": [] for name in experiment.evaluation.baselines} | {"report": [REPORT]}


class Timeline:
    """Progress of a study: the estimates for its stages, corrected by how long the finished ones took."""

    def __init__(self, stages: Mapping[str, Sequence[float]], *, clock: Clock = time.monotonic) -> None:
        self.stages = stages
        self.total = sum(map(sum, stages.values()))
        self._clock = clock
        self._began = self._stage_began = clock()
        self._before = 0.0
        self._stage: str | None = None
        self._part = self._step = 0
        self._reached: float | None = None

    def begin(self, stage: str) -> bool:
        """Enter a stage, and with it leave the one before; return whether it is one of the plan's."""
        self._before += sum(self._parts)
        self._stage = stage if stage in self.stages else None
        self._part, self._step, self._reached, self._stage_began = 0, 0, None, self._clock()
        return self._stage is not None

    def progress(self, step: int, steps: int) -> None:
        """Note the step of a training of the stage; a step below the last one's is the next training's."""
        parts = self._parts
        if not parts:
            return
        if step < self._step:
            self._part = min(self._part + 1, len(parts) - 1)
        self._step = step
        if self._reached is None and step > 1:
            # An earlier call did what lies before: it cost nothing now, and says nothing about the pace.
            skipped = parts[self._part] * (step - 1) / steps
            self.total -= skipped
            self._before -= skipped
        self._reached = sum(parts[: self._part]) + parts[self._part] * step / steps

    def left(self) -> float:
        """Return about how many seconds are left."""
        now = self._clock()
        # A stage without progress is taken to keep to its estimate.
        reached = min(now - self._stage_began, sum(self._parts)) if self._reached is None else self._reached
        done, doubt = self._before + reached, DOUBT * self.total
        pace = (now - self._began + doubt) / (done + doubt) if done + doubt else 1.0
        return max(0.0, pace * (self.total - done))

    def where(self) -> str:
        """Return the stage's number, and what is left of all of them."""
        names = list(self.stages)
        number = f"stage {names.index(self._stage) + 1} of {len(names)}, " if self._stage and len(names) > 1 else ""
        return f"{number}{duration_text(self.left())} left"

    @property
    def _parts(self) -> Sequence[float]:
        return self.stages[self._stage] if self._stage is not None else ()


def duration_text(seconds: float) -> str:
    """Return a length of time as coarsely as an estimate deserves."""
    if seconds < 55:
        return "less than a minute"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"about {minutes} minute{'s' * (minutes > 1)}"
    return f"about {seconds / 3600:.1f} hours"

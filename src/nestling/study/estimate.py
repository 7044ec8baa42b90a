"""About how long a study will take here: characters to train on and to encode, by the speeds of a few timed batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nestling.config.experiment import Experiment, Variant
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
READ, MINED = 48, 3
"""Pairs that a cross-encoder reads for each query, its invented ones included; negatives it is trained with."""
TRAINING, EVALUATION, REPORT = 4.0, 1.5, 6.0
"""Seconds of a stage beside its texts: loading, saving, turning, fusion, intervals, pictures."""
DOUBT = 0.1
"""Share of the whole that must be done until what it took counts as much as the estimate."""


@dataclass(frozen=True)
class Rates:
    """Speeds of a model on this machine, in characters a second: those of texts differ by length, theirs hardly.

    Attributes:
        trained: through a step of a training, forward and backward.
        encoded: by encoding.
        pieces: entries of its vocabulary, which a table of word pieces encodes once.
    """

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
        torch.autograd.backward(torch.stack([found.float().sum() for found in loss.embedded(columns)]).sum())
        model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    with torch.random.fork_rng():
        # What is recorded for a GPU is recorded for a shape: the whole batch first.
        step(None if torch.cuda.is_available() else WARM_UP)
        start, taken, done = clock(), 0.0, 0
        while done < BATCHES and taken < ENOUGH_SECONDS:
            step()
            done, taken = done + 1, clock() - start
    trained = done * sum(len(text) for side in sides for text in side) / taken
    return Rates(trained, encoded, len(model.tokenizer))


@dataclass(frozen=True)
class Work:
    """What there is to do: characters to train on and to encode, tables of word pieces to make, and seconds beside."""

    trained: float = 0.0
    encoded: float = 0.0
    tables: int = 0
    seconds: float = 0.0

    def at(self, rates: Rates) -> float:
        """Return about how many seconds it takes."""
        encoded = self.encoded + self.tables * rates.pieces * PIECE
        return self.trained / rates.trained + encoded / rates.encoded + self.seconds


class Texts:
    """The texts of a side of a split, or of a share of a table that is still to be split.

    Attributes:
        queries, documents: characters of the distinct ones.
        query, document: characters of one, on average over the records.
        n_queries, n_documents: how many distinct ones there are.
    """

    def __init__(self, judgments: Judgments, share: float = 1.0) -> None:
        self.judgments = judgments
        self.share = share
        queries, documents = (judgments.frame[side].unique().str.len_chars() for side in ("query", "document"))
        self.n_queries, self.n_documents = share * len(queries), share * len(documents)
        self.queries, self.documents = share * float(queries.sum()), share * float(documents.sum())
        self.query, self.document = self.queries / self.n_queries, self.documents / self.n_documents

    @property
    def all(self) -> float:
        """Characters of all distinct texts."""
        return self.queries + self.documents

    def pairs(self, above: float) -> float:
        """Return how many records are scored above `above`."""
        return self.share * len(self.judgments.above(above))


def trainings(spec: TrainingSpec, train: Texts, dev: Texts) -> list[Work]:
    """Return the trainings of a spec, in the order in which `fit` makes them."""
    from nestling.training.inputs.contrastive import positives_above

    settings, step = spec.settings, spec.settings.finetune
    table = Work(encoded=train.all, tables=1, seconds=TRAINING)
    if step.start == "static":
        return [table]
    if step.start == "adapter":
        return [Work(encoded=train.all + 2 * dev.all, seconds=TRAINING)]
    scored = step.loss in ("cosine", "cosent")
    pairs = train.share * len(train.judgments) if scored else train.pairs(positives_above(train.judgments, spec))
    epoch = pairs * (train.query + (1 + step.negatives) * train.document)
    epoch += step.crops * train.n_documents * (CROP + train.document)
    # The base and the result are measured on dev beside the epochs.
    encoded = dev.all * (settings.epochs + 2) + train.documents * (step.batches == "similar")
    steps = settings.steps
    encoded += train.all * any(isinstance(each, Rotate | ConcatStatic) for each in steps)
    parts = [Work(settings.epochs * epoch, encoded, seconds=TRAINING)]
    if any(isinstance(each, Distill) for each in steps):
        pair = train.query + train.document
        read = READ * train.n_queries * pair
        parts.append(Work(2 * (1 + MINED) * train.share * len(train.judgments) * pair, train.all + read, 0, TRAINING))
        parts.append(Work(train.n_queries * 3 * (train.query + 6 * train.document), 3 * dev.all, 0, TRAINING))
    if any(isinstance(each, ConcatStatic) for each in steps):
        parts.append(table)
    return parts


def plan(
    experiment: Experiment,
    judgments: Judgments,
    bases: Mapping[str, ModelSource],
    specs: Mapping[str, TrainingSpec],
    done: Collection[str],
) -> dict[str, list[float]]:
    """Return the stages of a run in order, and about how many seconds each takes here; none for what is done.

    Args:
        bases: what each variant starts from.
        specs: of the variants that are trained.
        done: names of what lies in the run's folder, as its state has them.
    """
    sides = experiment.split
    train, dev, test = (Texts(judgments, share) for share in (1 - sides.dev - sides.test, sides.dev, sides.test))
    rates: dict[str, Rates] = {}

    def seconds(what: str, variant: Variant, work: list[Work]) -> list[float]:
        if what in done:
            return []
        base = experiment.base_of(variant)
        if base not in rates:
            rates[base] = measure(bases[variant.name], judgments, experiment.training)
        return [each.at(rates[base]) for each in work]

    planned: dict[str, list[float]] = {"inspect": [EVALUATION], "split": []}
    for variant in experiment.trained:
        work = trainings(specs[variant.name], train, dev)
        planned[f"train {variant.name}"] = seconds(f"model {variant.name}", variant, work)
    for variant in experiment.variants:
        # A table encodes in next to no time.
        encoded = 0.0 if variant.recipe == "static" else test.all + dev.all
        work = [Work(encoded=encoded, seconds=EVALUATION)]
        planned[f"evaluate {variant.name}"] = seconds(f"evaluation {variant.name}", variant, work)
    return planned | {f"evaluate {name}": [] for name in experiment.evaluation.baselines} | {"report": [REPORT]}


class Timeline:
    """Where a study stands: what was estimated for its stages, set right by what is done of them and what that took.

    Args:
        stages: each stage in order, and about how many seconds each of its trainings takes, or all of it; none where
            it was done before.
    """

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
        if self._stage is not None:
            self._before += sum(self.stages[self._stage])
        self._stage = stage if stage in self.stages else None
        self._part, self._step, self._reached, self._stage_began = 0, 0, None, self._clock()
        return self._stage is not None

    def progress(self, step: int, steps: int) -> None:
        """Note the step of a training of the stage; a step below the last one's is the next training's."""
        parts = self.stages[self._stage] if self._stage is not None else ()
        if not parts:
            return
        if step < self._step:
            self._part = min(self._part + 1, len(parts) - 1)
        self._step = step
        before = sum(parts[: self._part])
        if self._reached is None and step > 1:
            # An earlier call did what lies before: it cost nothing now, and says nothing about the pace.
            skipped = parts[self._part] * (step - 1) / steps
            self.total -= skipped
            self._before -= skipped
        self._reached = before + parts[self._part] * step / steps

    def left(self) -> float:
        """Return about how many seconds are left."""
        now = self._clock()
        reached = 0.0
        if self._stage is not None:
            whole = sum(self.stages[self._stage])
            # A stage that tells nothing of itself is taken to keep to its estimate.
            reached = min(now - self._stage_began, whole) if self._reached is None else self._reached
        done, doubt = self._before + reached, DOUBT * self.total
        pace = (now - self._began + doubt) / (done + doubt) if done + doubt else 1.0
        return max(0.0, pace * (self.total - done))

    def where(self) -> str:
        """Return the stage's number, and what is left of all of them."""
        names = list(self.stages)
        number = f"stage {names.index(self._stage) + 1} of {len(names)}, " if self._stage and len(names) > 1 else ""
        return f"{number}{spoken(self.left())} left"


def spoken(seconds: float) -> str:
    """Return a length of time as coarsely as an estimate deserves."""
    if seconds < 55:
        return "less than a minute"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"about {minutes} minute{'s' * (minutes > 1)}"
    return f"about {seconds / 3600:.1f} hours"

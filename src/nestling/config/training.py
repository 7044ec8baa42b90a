"""Settings of a training: frozen, validated, the same for every recipe."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

logger = logging.getLogger(__name__)

STUDY_TRAINING = {
    "epochs": 30,
    "batch_size": 8,
    "learning_rate": 5e-5,
    "warmup": 0.0,
    "precision": "fp32",
    "attention_dropout": None,
    "fast": False,
    "no_duplicates": False,
    "keep": "last",
}
"""Training as in the reference study: the stock trainer's defaults, thirty epochs, the last weights."""

REMOVED = dict.fromkeys(
    ("mined", "prefix_weight", "symmetric", "typos"), "was taken out, since it brought nothing; leave it out"
)
"""Training settings of earlier versions, and what to say of each; the ledger, docs/experiments.md, has the figures."""

RENAMED: dict[str, tuple[str, Callable[[Any], Any] | None]] = {
    **{
        name: (f"finetune.{name}", None)
        for name in ("scale", "positives_above", "negatives", "bm25", "language", "crops", "rotate_first")
    },
    "alike": ("finetune.batches", lambda value: "similar" if value else "length"),
    "cross_encoder": ("distill", lambda value: {"weight": value} if value else False),
    "lexical": ("concat_static", None),
    "base_share": ("merge_base", lambda value: {"share": value} if value else False),
}
"""Training settings of the version before: the name that each has now, and what its value becomes."""


def listed(value: Any) -> Any:
    """Return a single text or number as a list of one, so that YAML may leave the brackets out."""
    return [value] if isinstance(value, str | int) else value


def _check_dims(dims: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if dims is None:
        return None
    if not dims:
        raise ValueError("needs at least one size")
    if min(dims) < 1:
        raise ValueError(f"sizes must be 1 or more, not {min(dims)}")
    if any(a <= b for a, b in pairwise(dims)):
        raise ValueError(f"sizes must fall, as in {', '.join(map(str, sorted(set(dims), reverse=True)))}")
    return dims


def check_language(name: str | None) -> str | None:
    """Return `name` if it is None or there is a stemmer for it, else raise ValueError."""
    import Stemmer  # type: ignore[import-not-found]

    if name is not None and name not in Stemmer.algorithms():
        raise ValueError(f"there is no stemmer for {name!r}; choose one of {', '.join(Stemmer.algorithms())}")
    return name


Dims = Annotated[tuple[int, ...] | None, AfterValidator(_check_dims)]
"""Falling sizes of embeddings, or None for sizes by default."""


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Finetune(Settings):
    """The first step: train a model on the judgments, keep its best epoch on dev, and never less than it began with."""

    start: Literal["transformer", "static", "adapter"] = "transformer"
    """The model to train: the base's transformer, a table of word-piece vectors made of it, or a layer upon it."""
    loss: Literal["mnrl", "graded", "cosine", "cosent"] = "mnrl"
    """`mnrl` and `graded` are contrastive: positives against the batch, all alike or by their scores. The others fit
    cosines to scores."""
    positives: Literal["relevant", "middle"] = "relevant"
    """Contrastive: pairs above the threshold of relevance, or all from the middle of the scale upwards."""
    positives_above: float | None = None
    """Contrastive: pairs scored above this are positives, whatever `positives` says."""
    negatives: int = Field(default=0, ge=0)
    """Contrastive: documents judged low to draw for each query, as hard negatives."""
    batches: Literal["length", "similar"] = "length"
    """Contrastive: batches of texts of like length, or of documents that resemble each other as hard negatives."""
    scale: float = Field(default=20, gt=0)
    """Contrastive: cosines are multiplied by this; 1 / temperature."""
    crops: int = Field(default=0, ge=0)
    """Contrastive: queries to make of a few words of each training document, anew in every epoch."""
    bm25: float = Field(default=0.0, ge=0)
    """Contrastive: weight of stemmed BM25 as a teacher of the batch, so that exact words count more."""
    language: Annotated[str | None, AfterValidator(check_language)] = None
    """Of BM25's stemmer; in an experiment the evaluation's by default, else English."""
    rotate_first: bool | None = None
    """Matryoshka: rotate the base before it is trained; on by default, but off where not `fast`."""


class MergeBase(Settings):
    """Mix the base model's weights into the trained transformer's, where dev is not lower for it."""

    share: float = Field(default=0.2, gt=0, lt=1)
    """Of the base."""


class Distill(Settings):
    """Train a cross-encoder on the judgments, and the transformer once more with it as its teacher."""

    weight: float = Field(default=2.0, gt=0)
    """Of the teacher in the loss."""


class Rotate(Settings):
    """Rotate the embedding so that its prefixes rank more like the whole; full-size cosines stay."""


class ConcatStatic(Settings):
    """Concatenate a table of word-piece vectors, trained too, with the transformer, so that exact words count more."""


Step = Finetune | MergeBase | Distill | ConcatStatic | Rotate
STEPS: dict[str, type[Step]] = {
    "finetune": Finetune,
    "merge_base": MergeBase,
    "distill": Distill,
    "concat_static": ConcatStatic,
    "rotate": Rotate,
}
"""The steps of a training by their settings' names, in the order in which they are made."""


class TrainingSettings(Settings):
    """Training settings of every variant, unless it says otherwise itself."""

    preset: Literal["default", "study"] = "default"
    """`study` sets the other values as the reference study had them; those given beside it still count."""
    epochs: float = Field(default=3, gt=0)
    """Passes over the training pairs."""
    batch_size: int = Field(default=64, ge=2)
    """Pairs in a batch."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """The highest, after warm-up."""
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """The fall of the learning rate over the steps."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's."""
    seed: int = Field(default=0, ge=0)
    """Of order, dropout and sampling."""
    max_seq_length: int | None = Field(default=None, ge=4)
    """Tokens after which a text is cut; the model's own limit by default."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the training; `auto` takes bf16 where the machine has it."""
    attention_dropout: float | None = Field(default=0.0, ge=0, lt=1)
    """Dropout on attention weights; null keeps the model's own."""
    hidden_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout on hidden states; null keeps the model's own. 0 is faster on a CPU, and may cost small prefixes."""
    fast: bool = True
    """Batches of like length, tokens computed once, and masks; false takes the library's own sampler and losses."""
    no_duplicates: bool = True
    """Where not `fast`: keep equal texts out of a batch, by the library's slow sampler."""
    patience: int | None = Field(default=None, ge=1)
    """Epochs without a better dev figure after which the training ends; null trains all of them."""
    keep: Literal["best", "last"] = "best"
    """Which weights become the model: those best on dev (also against the base), or the last."""
    checkpoint_seconds: float = Field(default=60, ge=0)
    """Save the state of the training at least this often."""
    report_to: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    """Trackers of transformers: trackio, wandb, tensorboard."""
    finetune: Finetune = Finetune()
    merge_base: MergeBase | None = None
    distill: Distill | None = None
    concat_static: ConcatStatic | None = None
    rotate: Rotate | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return layered(STUDY_TRAINING, value) if value.get("preset") == "study" else layered(value)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of a training with these settings, in order; without those that what is trained has no use for."""
        first = self.finetune
        if first.start != "transformer":
            return (first,)
        contrastive = first.loss == "graded" or (first.loss == "mnrl" and self.fast)
        chain = (first, self.merge_base, self.distill if contrastive else None, self.concat_static, self.rotate)
        return tuple(step for step in chain if step is not None)


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Lay training settings over each other, later ones on top, a step's settings each by itself.

    A step is `true` (as the layers below have it, else by default), `false` or null (left out), or a mapping;
    `step.setting: value` is short for a mapping. Earlier versions' names become today's, with a warning. Raises
    ValueError where a step is none of these, or the first is left out.

    >>> layered({"epochs": 2, "merge_base": {"share": 0.1}}, {"merge_base": True, "finetune.crops": 1})
    {'epochs': 2, 'merge_base': {'share': 0.1}, 'finetune': {'crops': 1}}
    """
    settings: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            name, value = _renamed(key, value)
            step, _, setting = name.partition(".")
            if step not in STEPS:
                settings[name] = value
                continue
            value = {setting: value} if setting else value
            value = value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
            if step == "finetune" and value in (False, None):
                raise ValueError("finetune: the first step cannot be left out; give its settings as a mapping")
            if not (value is None or isinstance(value, bool | dict)):
                raise ValueError(f"{step}: give true, false, or its settings as a mapping, not {value!r}")
            value = {} if value is True else value
            settings[step] = {**(settings.get(step) or {}), **value} if isinstance(value, dict) else None
    return settings


def setting_names() -> list[str]:
    """Return the names of all training settings, those of a step as `step.setting`."""
    of_steps = [f"{step}.{name}" for step, kind in STEPS.items() for name in kind.model_fields]
    return [*TrainingSettings.model_fields, *of_steps]


def value_of(settings: TrainingSettings, name: str) -> Any:
    """Return a setting's value by its name in `setting_names`; None in a step that is left out.

    >>> value_of(TrainingSettings(), "finetune.scale"), value_of(TrainingSettings(), "merge_base.share")
    (20, None)
    """
    step, _, setting = name.rpartition(".")
    return getattr(getattr(settings, step) if step else settings, setting, None)


def renamed(name: str) -> str:
    """Return today's name of a setting whose name alone has changed, with a warning; other names as they are."""
    return _renamed(name, None)[0] if name in RENAMED and RENAMED[name][1] is None else name


def _renamed(key: str, value: Any) -> tuple[str, Any]:
    if key not in RENAMED:
        return key, value
    name, to = RENAMED[key]
    _warn(key, name)
    return name, to(value) if to else value


@cache
def _warn(old: str, new: str) -> None:
    logger.warning("training.%s is now training.%s; the old name goes with the next version", old, new)


class Matryoshka(Settings):
    """Sizes of the prefixes that are trained too, and the weight of each."""

    dims: Dims = None
    """Falling; the evaluation's sizes by default, else a half, a quarter and an eighth of the model's. Its full size is
    added where it is missing."""
    weights: tuple[float, ...] | None = None
    """One for each size; all alike by default."""

    @model_validator(mode="after")
    def _one_weight_each(self) -> Matryoshka:
        if self.weights is not None and (not self.weights or len(self.weights) != len(self.dims or ())):
            raise ValueError("weights needs dims of the same number")
        if self.weights is not None and (min(self.weights) < 0 or max(self.weights) == 0):
            raise ValueError("weights must be 0 or more, and one above 0")
        return self

"""Settings of a training: frozen, validated, the same for every recipe."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

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


def listed(value: Any) -> Any:
    """Return a single text or number as a list of one, so that YAML may leave the brackets out."""
    return [value] if isinstance(value, str | int) else value


def check_dims(dims: tuple[int, ...]) -> tuple[int, ...]:
    """Return `dims` if they are positive and falling, else raise ValueError."""
    if not dims:
        raise ValueError("needs at least one size")
    if min(dims) < 1:
        raise ValueError(f"sizes must be 1 or more, not {min(dims)}")
    if any(a <= b for a, b in pairwise(dims)):
        raise ValueError(f"sizes must fall, as in {', '.join(map(str, sorted(set(dims), reverse=True)))}")
    return dims


def check_language(name: str) -> str:
    """Return `name` if there is a stemmer for it, else raise ValueError."""
    import Stemmer  # type: ignore[import-not-found]

    known = Stemmer.algorithms()
    if name not in known:
        raise ValueError(f"there is no stemmer for {name!r}; choose one of {', '.join(known)}")
    return name


class Settings(BaseModel):
    """What all settings share: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class TrainingSettings(Settings):
    """How every variant is trained, unless it says otherwise itself."""

    preset: Literal["default", "study"] = "default"
    """`study` sets the other values as the reference study had them; those given beside it still count."""
    epochs: float = Field(default=3, gt=0)
    """Passes over the training pairs."""
    batch_size: int = Field(default=64, ge=2)
    """Pairs in a batch."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """The highest, after warm-up."""
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """How the learning rate falls."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's."""
    seed: int = Field(default=0, ge=0)
    """Of order, dropout and sampling."""
    max_seq_length: int | None = Field(default=None, ge=4)
    """Tokens after which a text is cut; the model's own limit by default."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """What training computes in; `auto` takes bf16 where the machine has it."""
    attention_dropout: float | None = Field(default=0.0, ge=0, lt=1)
    """Dropout on attention weights; null keeps the model's own."""
    hidden_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout on hidden states; null keeps the model's own. 0 is faster on a CPU, and may cost small prefixes."""
    scale: float = Field(default=20, gt=0)
    """Contrastive recipes: cosines are multiplied by this; 1 / temperature."""
    negatives: int | None = Field(default=None, ge=0)
    """Contrastive recipes: documents judged low to draw for each query; as the recipe has it by default."""
    positives_above: float | None = None
    """Contrastive recipes: pairs scored above this are positives; the experiment's threshold by default."""
    alike: bool = False
    """Contrastive recipes: fill each batch with documents that resemble each other, as each other's hard negatives."""
    bm25: float = Field(default=0.0, ge=0)
    """Contrastive recipes: weight of what stemmed BM25 makes of a batch, so that exact words count more."""
    language: str | None = None
    """Of BM25's stemmer; in an experiment the evaluation's by default, else English."""
    cross_encoder: float = Field(default=0.0, ge=0)
    """Contrastive recipes: weight of a cross-encoder, trained too, that teaches the transformer in a second phase."""
    lexical: bool = False
    """Join the trained transformer with a table of word-piece vectors (`static`), so that exact words count more."""
    base_share: float = Field(default=0.0, ge=0, lt=1)
    """Mix this share of the base model's weights into the trained transformer's; left out where dev is lower for it."""
    rotate: bool = False
    """Rotate the trained transformer so that its prefixes rank more like the whole; full-size cosines stay."""
    rotate_first: bool | None = None
    """Matryoshka: rotate the base before it is trained; on by default, but off where not `fast`."""
    crops: int = Field(default=0, ge=0)
    """Contrastive recipes: queries to make of a few words of each training document, anew in every epoch."""
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

    @field_validator("language")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        return None if value is None else check_language(value)

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("preset") == "study":
            return {**STUDY_TRAINING, **value}
        return value


class Matryoshka(Settings):
    """Sizes of the prefixes that are trained too, and the weight of each."""

    dims: tuple[int, ...] | None = None
    """Falling; the evaluation's sizes by default, else a half, a quarter and an eighth of the model's. Its full size is
    added where it is missing."""
    weights: tuple[float, ...] | None = None
    """One for each size; all alike by default."""

    @field_validator("dims")
    @classmethod
    def _falling(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if value is None else check_dims(value)

    @model_validator(mode="after")
    def _one_weight_each(self) -> Matryoshka:
        if self.weights is None:
            return self
        if self.dims is None or len(self.weights) != len(self.dims):
            raise ValueError("weights needs dims of the same number")
        if min(self.weights) < 0 or max(self.weights) == 0:
            raise ValueError("weights must be 0 or more, and one above 0")
        return self

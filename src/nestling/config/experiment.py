"""Experiment: everything that a study depends on, as frozen and validated settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from nestling.config.names import (
    DEFAULT_MODEL,
    ENGINES,
    FUSED,
    LEXICAL,
    MAX_UNPACKED,
    PRECISIONS,
    PRETRAINED,
    ROTATIONS,
    Rotation,
    SplitMethod,
)
from nestling.config.recipes import RECIPES
from nestling.config.training import (
    REMOVED,
    Dims,
    Matryoshka,
    Settings,
    TrainingSettings,
    check_language,
    layered,
    listed,
)

STUDY_DIMS = (384, 192, 96, 48)
"""The sizes of the reference study, and so of an experiment with `training.preset` of `study` that names no others."""

DEMO: dict[str, Any] = {
    "name": "demo",
    "data": {"source": "toolshed", "records": 2400},
    # Enough test queries for intervals, one epoch, and no table of word pieces, which costs as much for little data as
    # for much: the whole takes minutes on two old cores.
    "split": {"test": 0.3},
    "training": {"epochs": 1, "batch_size": 32},
    "variants": [
        "pretrained",
        "mnrl",
        "mnrl+matryoshka",
        {"recipe": "graded", "training": {"epochs": 1, "concat_static": False}},
    ],
}
"""The study that runs by default."""


def _one_of(kind: str, names: Sequence[str]) -> AfterValidator:
    """Check that a setting is one of the names, or several of them: those then stand in order, the first always."""

    def check(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        wrong = [name for name in listed(value) if name not in names]
        if wrong:
            raise ValueError(f"unknown {kind} {wrong[0]!r}; choose {', '.join(names)}")
        return value if isinstance(value, str) else tuple(name for name in names if name in (names[0], *value))

    return AfterValidator(check)


def _check_factors(factors: tuple[int, ...]) -> tuple[int, ...]:
    if any(factor < 2 for factor in factors):
        raise ValueError("oversampling factors must be 2 or more")
    return tuple(sorted(set(factors)))


class DataSettings(Settings):
    """Which judgments, and how their columns are called."""

    source: str = "toolshed"
    """`toolshed`, `home-depot`, a file, a folder or a hub data set."""
    query: str | None = None
    """The column of queries, where it is not found by name."""
    document: Annotated[tuple[str, ...] | None, BeforeValidator(listed)] = None
    """One column, or several that are joined in this order."""
    score: str | None = None
    """The column of scores, where it is not found by name."""
    query_id: str | None = None
    """The column of query ids, if there is one."""
    document_id: str | None = None
    """The column of document ids, if there is one."""
    scale: tuple[float, float] | None = None
    """Lowest and highest score a rater can give; by default the lowest and highest seen."""
    hub_split: str | None = None
    """Which split of a hub data set to read."""
    revision: str | None = None
    """Which revision of a hub data set to read."""
    records: int | None = Field(default=None, ge=2)
    """Take this many records at random; all by default."""
    threshold: float | None = None
    """A document is relevant where its score is above this; 2.5 on a scale of 1 to 3, else to be given. Where all
    scores are alike or there are none, every pair is relevant."""
    max_unpacked: int = Field(default=MAX_UNPACKED, ge=1)
    """MiB that a packed file (.gz, .zip, Parquet) may unpack to."""


class SplitSettings(Settings):
    """How records are dealt to train, dev and test."""

    test: float = Field(default=0.2, gt=0, lt=1)
    """Share of the records for test."""
    dev: float = Field(default=0.1, gt=0, lt=1)
    """Share of the records for dev."""
    method: SplitMethod = "auto"
    """The way to split; `auto` chooses and says why."""
    seed: int = Field(default=0, ge=0)
    """Of the dealing."""

    @model_validator(mode="after")
    def _something_left(self) -> SplitSettings:
        if self.test + self.dev >= 1:
            raise ValueError(f"test {self.test:g} and dev {self.dev:g} leave nothing for train")
        return self


class Prompts(Settings):
    """Prompts before texts, for models that need them and store none; those that are not given are the model's."""

    query: str | None = None
    """Before queries."""
    document: str | None = None
    """Before documents."""

    def given(self) -> dict[str, str]:
        """Return those that are given, by kind of text."""
        return self.model_dump(exclude_none=True)


class Variant(Settings):
    """A model of the study: a base and what is done to it. Short form: `RECIPE[+matryoshka][@BASE]`."""

    name: str = Field(min_length=1, max_length=80, pattern=r"^[\w.+-]+$")
    """In tables and folders; the short form by default."""
    recipe: Annotated[str, _one_of("recipe", (PRETRAINED, *RECIPES))] = PRETRAINED
    """The training of the base; `pretrained` leaves it as it is."""
    base: str | None = None
    """A name, folder or hub id; the experiment's `model` by default."""
    prompts: Prompts | None = None
    """By default the experiment's where the base is the experiment's model."""
    matryoshka: Matryoshka | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    """Training settings in which this variant differs."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, dict) and "name" not in value and isinstance(value.get("recipe"), str):
            matryoshka = "+matryoshka" if value.get("matryoshka") is not None else ""
            base = f"@{value['base']}" if value.get("base") else ""
            return {**value, "name": _plain(value["recipe"] + matryoshka + base)}
        if not isinstance(value, str):
            return value
        recipe, _, base = value.partition("@")
        recipe, *extras = recipe.split("+")
        if extras not in ([], ["matryoshka"]):
            raise ValueError(f"{value!r}: after the recipe only +matryoshka is known")
        return {"name": _plain(value), "recipe": recipe, "base": base or None, "matryoshka": {} if extras else None}

    @model_validator(mode="after")
    def _trained(self) -> Variant:
        if self.recipe == PRETRAINED and (self.matryoshka is not None or self.training):
            raise ValueError("pretrained is not trained, so it takes neither matryoshka nor training")
        return self


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_.+-" else "-" for c in name).replace("@", "-").strip("-")


class EvaluationSettings(Settings):
    """What is measured."""

    dims: Dims = None
    """Falling sizes; a model's own full size is added where it is missing. By default its half, quarter and eighth."""
    protocol: Literal["per-query", "per-pair"] = "per-query"
    """The unit that counts as a query: one text, or each relevant record."""
    measures: tuple[str, ...] = ("recall@10", "mrr@10", "ndcg@10")
    """recall, mrr, ndcg, hit, precision or map, each `@k`."""
    precisions: Annotated[tuple[str, ...], BeforeValidator(listed), _one_of("precision", PRECISIONS)] = ("float32",)
    """How embeddings are stored: float32, float16, int8, int4, binary; float32 is always among them."""
    rotations: Annotated[tuple[Rotation, ...], BeforeValidator(listed), _one_of("rotation", ROTATIONS)] = ("none",)
    """`trained` turns a model's axes before truncation, by the training side's texts; `pca` does so by their moments
    alone, in less time and less well."""
    oversampling: Annotated[tuple[int, ...], BeforeValidator(listed), AfterValidator(_check_factors)] = ()
    """Measure each cell with a shortlist so many times as long, rescored by the full embedding, too."""
    baselines: Annotated[tuple[Literal["bm25", "bm25-stemmed"], ...], BeforeValidator(listed)] = LEXICAL
    """Lexical rankings to measure beside the models."""
    fusion: bool = True
    """Measure each model with stemmed BM25 added, at a weight chosen on dev, as a variant of its own."""
    language: Annotated[str, AfterValidator(check_language)] = "english"
    """Of the stemmer."""
    engine: Annotated[str, _one_of("engine", ENGINES)] = "torch-fp32"
    """What encodes: torch-fp32, torch-bf16, torch-fp16, openvino-fp32, openvino-bf16, openvino-int8, or auto."""
    batch_size: int = Field(default=64, ge=1)
    """Texts encoded at once."""


class Experiment(Settings):
    """A whole study. By default of the generated catalogue, with the bundled model."""

    name: str = Field(default="study", min_length=1, max_length=80, pattern=r"^[\w.+-]+$")
    """The run folder is `runs/NAME`."""
    model: str = DEFAULT_MODEL
    """The base model: a folder, the bundled all-MiniLM-L6-v2, or a hub id with an optional @revision."""
    prompts: Prompts = Prompts()
    """Of `model`, as in `{query: "query: ", document: "passage: "}` for e5; saved with what is trained from it."""
    data: DataSettings = DataSettings()
    split: SplitSettings = SplitSettings()
    training: TrainingSettings = TrainingSettings()
    variants: tuple[Variant, ...] = Field(
        default=("pretrained", "mnrl", "mnrl+matryoshka", "graded"), validate_default=True
    )
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="before")
    @classmethod
    def _study(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        training, evaluation = (value.get(key) or {} for key in ("training", "evaluation"))
        if isinstance(training, dict) and isinstance(evaluation, dict) and training.get("preset") == "study":
            value = {**value, "evaluation": {"dims": STUDY_DIMS, **evaluation}}
        return value

    @model_validator(mode="after")
    def _distinct(self) -> Experiment:
        names = [variant.name for variant in self.variants]
        if not names:
            raise ValueError("variants needs at least one")
        duplicates = [name for name in names if names.count(name) > 1]
        if duplicates:
            raise ValueError(f"two variants are called {duplicates[0]!r}; give one another name")
        reserved = [name for name in names if name in LEXICAL or name.endswith(FUSED)]
        if reserved:
            raise ValueError(f"variant {reserved[0]!r} is named as BM25 or a fusion is; give it another name")
        for variant in self.variants:
            try:
                self.training_of(variant)
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join(map(str, first["loc"]))
                raise ValueError(f"variant {variant.name}: training.{key}: {REMOVED.get(key, first['msg'])}") from None
        return self

    @property
    def trained(self) -> tuple[Variant, ...]:
        """The variants that are trained."""
        return tuple(variant for variant in self.variants if variant.recipe != PRETRAINED)

    def base_of(self, variant: Variant) -> str:
        """Return the name of the model that `variant` starts from."""
        return variant.base or self.model

    def training_of(self, variant: Variant) -> TrainingSettings:
        """Return the training settings of `variant`: the experiment's, its recipe's needs, and its own on top."""
        recipe = RECIPES[variant.recipe].defaults if variant.recipe in RECIPES else {}
        general = self.training.model_dump(exclude_unset=True)
        settings = TrainingSettings.model_validate(layered(general, recipe, variant.training))
        if not settings.finetune.bm25 or settings.finetune.language:
            return settings
        step = settings.finetune.model_copy(update={"language": self.evaluation.language})
        return settings.model_copy(update={"finetune": step})

    def to_yaml(self) -> str:
        """Return the experiment as YAML with every setting spelled out, so that it reads back as the same."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

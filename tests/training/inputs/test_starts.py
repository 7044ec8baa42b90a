"""What each recipe makes of a hand-made table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sentence_transformers import SentenceTransformer

from fixtures.training import inputs_of, settings_of
from nestling.config.recipes import RECIPES, find_recipe
from nestling.config.training import TrainingSettings
from nestling.errors import InputError
from nestling.judgments.table import Judgments
from nestling.judgments.toolshed import generate
from nestling.models.load import ModelSource, find_model, load_model, prompts_of
from nestling.training.batches.tokens import tokenised
from nestling.training.fast.unpadded import can_unpad
from nestling.training.inputs.contrastive import positives_above
from nestling.training.inputs.starts import STARTS
from nestling.training.losses.contrastive import EncodingLoss
from nestling.training.spec import TrainingInputs, TrainingSpec
from nestling.training.trainer_adapter import arguments_for, trainer_for

PROMPTS = {"query": "drill: ", "document": "a saw: "}

ROWS = [("saw", "hand saw", 3.0), ("saw", "saw blade", 2.0), ("drill", "drill bit", 1.0), ("nail", "nail gun", 2.2)]


@pytest.fixture
def judgments() -> Judgments:
    return Judgments.from_frame(pl.DataFrame(ROWS, schema=["query", "document", "score"], orient="row"), scale=(1, 3))


def examples_of(judgments: Judgments, base: Path, recipe: str) -> dict[str, Any]:
    spec = TrainingSpec(find_model(str(base)), recipe, settings_of(recipe, fast=False), 2.5)
    return inputs_of(judgments, spec).examples.to_dict()


def test_positive_pairs_are_those_above_the_threshold(judgments: Judgments, tiny_model_path: Path):
    assert examples_of(judgments, tiny_model_path, "mnrl") == {"anchor": ["saw"], "positive": ["hand saw"]}


def test_scored_pairs_are_all_with_scores_from_0_to_1(judgments: Judgments, tiny_model_path: Path):
    examples = examples_of(judgments, tiny_model_path, "cosent")
    scores = dict(zip(examples["document"], examples["score"], strict=True))
    assert scores == {"hand saw": 1.0, "saw blade": 0.5, "drill bit": 0.0, "nail gun": pytest.approx(0.6)}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("recipe", ["mnrl", "graded"])
def test_no_positive_pair_is_refused(judgments: Judgments, tiny_model_path: Path, recipe: str, fast: bool):
    settings = settings_of(recipe, fast=fast, finetune={"positives_above": 3.0})
    with pytest.raises(InputError, match="no training pair is scored above 3"):
        inputs_of(judgments, TrainingSpec(find_model(str(tiny_model_path)), recipe, settings, threshold=2.5))


def test_equal_scores_cannot_be_ranked(judgments: Judgments, tiny_model_path: Path):
    with pytest.raises(InputError, match="cosine and cosent learn from scores that differ, and here every pair has"):
        examples_of(judgments.take([0]), tiny_model_path, "cosine")


def test_an_unknown_recipe_is_answered_with_the_known_ones():
    known = "pretrained, graded, distilled, mnrl, static, adapter, cosine, cosent"
    with pytest.raises(InputError, match=f"unknown recipe 'mse'; choose {known}"):
        find_recipe("mse")


def batch_of(inputs: TrainingInputs, model: SentenceTransformer, spec: TrainingSpec, folder: Path) -> dict[str, Any]:
    """Return what the trainer makes of all examples."""
    from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

    arguments = arguments_for(spec.settings, "fp32", len(inputs.examples), folder)
    trainer = trainer_for(model, arguments, inputs, SentenceEvaluator(), [])
    return trainer.data_collator([inputs.examples[row] for row in range(len(inputs.examples))])


def texts_of(batch: dict[str, Any], column: str) -> set[tuple[int, ...]]:
    """Return the token ids of a column's texts, without what they are padded with."""
    ids = batch[f"{column}_input_ids"]
    if f"{column}_offsets" in batch:
        return {tuple(part.tolist()) for part in ids.tensor_split(batch[f"{column}_offsets"][1:])}
    return {tuple(row[mask.bool()].tolist()) for row, mask in zip(ids, batch[f"{column}_attention_mask"], strict=True)}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "adapter"])
def test_every_recipe_reads_texts_after_the_prompts_as_the_library_does(
    judgments: Judgments, tiny_model_path: Path, tmp_path: Path, recipe: str, fast: bool
):
    settings = settings_of(recipe, fast=fast, finetune={"positives_above": 0.5, "negatives": 0})
    spec = TrainingSpec(
        find_model(str(tiny_model_path), prompts=PROMPTS), recipe, settings, 2.5, cache=tmp_path / "tokens"
    )
    model = STARTS[spec.settings.finetune.start](judgments, spec)
    # A table of word pieces has none: they would say nothing of one text or another.
    assert prompts_of(model) == ({"query": "", "document": ""} if recipe == "static" else PROMPTS)
    batch = batch_of(inputs_of(judgments, spec, model), model, spec, tmp_path)
    answers = "positive" if "positive_input_ids" in batch else "document"
    for column, texts, prompt in (
        ("anchor", judgments.frame["query"], prompts_of(model)["query"]),
        (answers, judgments.frame["document"], prompts_of(model)["document"]),
    ):
        own = [model.preprocess([text], prompt=prompt)["input_ids"].flatten().tolist() for text in texts]
        assert texts_of(batch, column) == set(map(tuple, own))


def test_an_adapter_is_trained_on_what_the_library_encodes_with_prompts(
    judgments: Judgments, tiny_model_path: Path, tmp_path: Path
):
    base = find_model(str(tiny_model_path), prompts=PROMPTS)
    spec = TrainingSpec(base, "adapter", settings_of("adapter"), 0.5, cache=tmp_path)
    plain = TrainingSpec(find_model(str(tiny_model_path)), "adapter", settings_of("adapter"), 0.5, cache=tmp_path)
    # What is kept of the one is not taken for the other's.
    loss, _ = (inputs_of(judgments, each).loss for each in (spec, plain))
    library = SentenceTransformer(str(tiny_model_path), device="cpu", prompts=PROMPTS)
    frame = judgments.frame
    queries = frame["query"].unique(maintain_order=True).to_list()
    np.testing.assert_allclose(
        np.sort(loss.queries.numpy(), axis=0), np.sort(library.encode_query(queries), axis=0), atol=1e-6
    )
    np.testing.assert_allclose(
        np.sort(loss.documents.numpy(), axis=0),
        np.sort(library.encode_document(frame["document"].to_list()), axis=0),
        atol=1e-6,
    )


@pytest.mark.parametrize("packed", [True, False])
def test_a_pooling_that_leaves_the_prompt_out_does_so_in_training(tiny_model_path: Path, packed: bool):
    texts = ["steel drill", "", "white door" * 40, "saw"]
    model = load_model(find_model(str(tiny_model_path), prompts=PROMPTS), attention_dropout=0.0).eval()
    included = model.encode_query(texts)
    model.set_pooling_include_prompt(False)
    assert not can_unpad(model)
    loss = EncodingLoss(model)
    loss.compute_dtype = torch.float32 if packed else None
    with torch.inference_mode():
        columns = [tokenised(model, texts, kind=kind).batch([3, 0, 1, 2]) for kind in PROMPTS]
        queries, documents = (found.numpy() for found in loss.embedded(columns))
    np.testing.assert_allclose(queries[[1, 2, 3, 0]], model.encode_query(texts), atol=1e-6)
    np.testing.assert_allclose(documents[[1, 2, 3, 0]], model.encode_document(texts), atol=1e-6)
    assert np.abs(included - model.encode_query(texts)).max() > 1e-3


def test_prompts_make_another_job_also_where_the_base_stores_them(
    tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def spec(source: ModelSource) -> str:
        return TrainingSpec(source, "mnrl", TrainingSettings(), 2.5).fingerprint()

    given = find_model(str(tiny_model_path), prompts=PROMPTS)
    assert spec(given) != spec(find_model(str(tiny_model_path)))
    model = load_model(given)
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    stored = find_model(str(tmp_path / "model"))
    before = spec(stored)
    # Models were trained without them once.
    monkeypatch.setattr(ModelSource, "prompts", {})
    assert before != spec(stored)


@pytest.mark.parametrize("matryoshka", [(), (32, 8)])
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_every_recipe_gives_a_loss_that_can_be_computed(
    judgments: Judgments, tiny_model_path: Path, recipe: str, matryoshka: tuple[int, ...]
):
    from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

    spec = TrainingSpec(find_model(str(tiny_model_path)), recipe, settings_of(recipe), 1.5, matryoshka)
    model = STARTS[spec.settings.finetune.start](judgments, spec)
    inputs = inputs_of(judgments, spec, model)
    collator = inputs.collator or SentenceTransformerDataCollator(model.preprocess)
    batch = collator([inputs.examples[row] for row in range(len(inputs.examples))])
    label = batch.pop("label", None)
    columns = dict.fromkeys(name.split("_")[0] for name in batch)
    features = [
        {name.removeprefix(f"{column}_"): value for name, value in batch.items() if name.startswith(f"{column}_")}
        for column in columns
    ]
    assert inputs.loss(features, label).item() > 0


def built(tiny: Path, recipe: str = "mnrl", **settings: object) -> SentenceTransformer:
    prefixes = settings.pop("matryoshka", (32, 8))
    spec = TrainingSpec(find_model(str(tiny)), recipe, settings_of(recipe, **settings), 2.5, prefixes)
    return STARTS[spec.settings.finetune.start](generate(300, seed=0), spec)


def test_prefixes_are_trained_on_a_base_that_is_rotated_first(tiny_model_path: Path):
    texts = generate(300, seed=0).frame["query"].unique(maintain_order=True).to_list()
    plain, turned = load_model(str(tiny_model_path)).encode(texts), built(tiny_model_path).encode(texts)
    np.testing.assert_allclose(turned @ turned.T, plain @ plain.T, atol=1e-4)
    assert (turned[:, :8] ** 2).sum() > 1.05 * (plain[:, :8] ** 2).sum()
    again = built(tiny_model_path).encode(texts)
    np.testing.assert_array_equal(turned, again)


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("mnrl", {"matryoshka": ()}),
        ("mnrl", {"fast": False}),
        ("mnrl", {"finetune": {"rotate_first": False}}),
        ("adapter", {"finetune": {"rotate_first": True}}),
    ],
)
def test_otherwise_the_base_is_not_rotated(tiny_model_path: Path, recipe: str, settings: dict[str, object]):
    model = built(tiny_model_path, recipe, **settings)
    base = load_model(str(tiny_model_path))
    # The adapter adds a layer of its own, and one only.
    assert len(model) == len(base) + (recipe == "adapter")


@pytest.mark.parametrize(("given", "above"), [(None, 1.998), (2.2, 2.2)])
def test_generous_positives_begin_at_the_middle_of_the_scale(
    judgments: Judgments, tiny_model_path: Path, given: float | None, above: float
):
    def threshold(recipe: str) -> float:
        settings = settings_of(recipe, finetune={"positives_above": given})
        return positives_above(judgments, TrainingSpec(find_model(str(tiny_model_path)), recipe, settings, 2.5))

    assert threshold("static") == pytest.approx(above)
    assert threshold("mnrl") == (given or 2.5)


def test_a_static_start_is_the_same_every_time(tiny_model_path: Path):
    # Large enough for polars to split the work, after which distinct values come in any order.
    judgments = generate(6000, seed=0)
    spec = TrainingSpec(find_model(str(tiny_model_path)), "static", settings_of("static"), threshold=2.5)
    one, other = (STARTS["static"](judgments, spec)[0].embedding.weight for _ in range(2))
    assert bool((one == other).all())

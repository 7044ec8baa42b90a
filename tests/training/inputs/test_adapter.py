"""The adapter: only the layer is trained, on vectors computed once, and the result is a plain model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from fixtures.training import KilledError, dying_at, inputs_of, settings_of, small_split, trained, weights
from nestling.config.training import TrainingSettings
from nestling.errors import InputError
from nestling.evaluation.qrels import Qrels
from nestling.judgments.split import Split
from nestling.judgments.table import Judgments
from nestling.models.load import find_model, load_model
from nestling.models.torch_encoder import embed
from nestling.retrieval.rotation import add_rotation, fit_rotation
from nestling.training.batches.batching import Pairs
from nestling.training.dev import DevEvaluator
from nestling.training.inputs import adapter as module
from nestling.training.inputs.adapter import AdapterEncoder, layer_of, with_adapter
from nestling.training.result import TrainingResult, last_checkpoint
from nestling.training.spec import TrainingSpec

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SETTINGS = settings_of("adapter", epochs=3, batch_size=24, learning_rate=1e-2, checkpoint_seconds=0, precision="fp32")


def layered_on(settings: TrainingSettings, **changes: float) -> TrainingSettings:
    return settings.model_copy(update={"finetune": settings.finetune.model_copy(update=changes)})


TEXTS = ["steel drill 12 inch", "white door", "wood door", "water heater", "white door"]
MEAN = "dev_recall@10_mean"


@pytest.fixture(scope="module")
def split() -> Split:
    return small_split()


@pytest.fixture(scope="module")
def spec(tiny_model_path: Path) -> TrainingSpec:
    # The last weights, which dev leaves as they are.
    settings = layered_on(SETTINGS, negatives=1).model_copy(update={"keep": "last"})
    return TrainingSpec(find_model(str(tiny_model_path)), "adapter", settings, threshold=2.5, matryoshka=(32, 8))


@pytest.fixture(scope="module")
def unbroken(split: Split, spec: TrainingSpec, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingResult, Path]:
    """The spec trained in one go: its result, and the folder for tests to read."""
    folder = tmp_path_factory.mktemp("unbroken")
    return trained(split, spec, folder), folder


@pytest.fixture
def model(tiny_model_path: Path) -> SentenceTransformer:
    return with_adapter(load_model(str(tiny_model_path)))


def batch_of(split: Split, spec: TrainingSpec, model: SentenceTransformer, rows: int = 8):
    inputs = inputs_of(split.train, spec, model)
    assert inputs.collator is not None
    return inputs, inputs.collator([{"row": row} for row in range(rows)])


def test_an_untrained_layer_changes_nothing(model: SentenceTransformer, tiny_model: SentenceTransformer):
    assert [type(each).__name__ for each in model] == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert model.encode(TEXTS) == pytest.approx(tiny_model.encode(TEXTS), abs=1e-6)


def test_only_the_layer_can_be_trained(model: SentenceTransformer):
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["2.linear.weight"]


def test_the_layer_starts_as_the_rotation_of_the_training_documents(
    split: Split, spec: TrainingSpec, model: SentenceTransformer, tiny_model: SentenceTransformer
):
    batch_of(split, spec, model)
    documents = Pairs.from_judgments(split.train, threshold=2.5).documents
    turned = embed(model, documents, kind="document")
    moment = turned.T @ turned
    # Along the principal axes, the strongest first: no products between columns, and falling squares.
    assert moment - np.diag(np.diag(moment)) == pytest.approx(np.zeros((32, 32)), abs=1e-4)
    assert np.all(np.diff(np.diag(moment)) <= 1e-4)
    before = embed(tiny_model, documents, kind="document")
    assert turned @ turned.T == pytest.approx(before @ before.T, abs=1e-5)


def test_the_loss_is_that_of_the_whole_model(split: Split, spec: TrainingSpec, model: SentenceTransformer):
    import torch

    from nestling.training.losses.contrastive import ContrastiveLoss

    inputs, batch = batch_of(split, replace(spec, weights=(1.0, 0.5)), model)
    pairs = Pairs.from_judgments(split.train, threshold=1.998)
    texts = [
        [pairs.queries[n] for n in batch["label"]["query"]],
        [pairs.documents[n] for n in batch["label"]["document"]],
    ]
    whole = ContrastiveLoss(
        model.eval(),
        inputs.loss.contrastive.relevance,
        scale=spec.settings.finetune.scale,
        dims=(32, 8),
        dim_weights=(1.0, 0.5),
    )
    with torch.no_grad():
        expected = whole([model.preprocess(column) for column in texts], batch["label"])
        found = inputs.loss([], batch["label"])
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_gradient_reaches_the_layer_and_nothing_else(split: Split, spec: TrainingSpec, model: SentenceTransformer):
    inputs, batch = batch_of(split, spec, model)
    inputs.loss([], batch["label"]).backward()
    assert layer_of(model).linear.weight.grad.abs().sum() > 0
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == ["2.linear.weight"]


def test_the_encoder_embeds_as_the_whole_model_does_and_reads_texts_once(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
):
    import torch

    calls = []

    def counted(*given: object, **options: object) -> np.ndarray:
        calls.append(options["kind"])
        return embed(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "embed", counted)
    encoder = AdapterEncoder()
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        with torch.no_grad():
            layer_of(model).linear.weight.copy_(torch.randn(32, 32, generator=generator))
        for kind in ("query", "document"):
            expected = embed(model, TEXTS, kind=kind)  # type: ignore[arg-type]
            assert encoder(model, TEXTS, kind=kind) == pytest.approx(expected, abs=1e-5)  # type: ignore[arg-type]
    assert calls == ["query", "document"]


def test_the_encoder_takes_the_models_prompts(tiny_model_path: Path):
    base = load_model(str(tiny_model_path))
    base.prompts = {"query": "find: ", "document": "item: "}
    model = with_adapter(base)
    for kind in ("query", "document"):
        found = AdapterEncoder()(model, TEXTS, kind=kind)  # type: ignore[arg-type]
        assert found == pytest.approx(embed(model, TEXTS, kind=kind), abs=1e-6)  # type: ignore[arg-type]


def test_the_result_is_the_base_and_a_layer_that_learnt(unbroken: tuple[TrainingResult, Path], tiny_model_path: Path):
    from sentence_transformers import SentenceTransformer

    result, folder = unbroken
    loaded = SentenceTransformer(str(folder / "model"), device="cpu")
    assert [type(each).__name__ for each in loaded] == ["Transformer", "Pooling", "Dense", "Normalize"]
    after = weights(folder)
    turned = after.pop("2.linear.weight")
    base = load_model(str(tiny_model_path)).state_dict()
    assert set(after) == set(base)
    assert all(np.array_equal(value, base[name].numpy()) for name, value in after.items())
    assert np.abs(turned @ turned.T - np.eye(32)).max() > 0.01
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_dev_figures_are_of_the_base_of_its_rotation_and_of_the_saved_folder(
    split: Split, unbroken: tuple[TrainingResult, Path], tiny_model_path: Path
):
    result, folder = unbroken
    evaluator = DevEvaluator(Qrels.from_judgments(split.dev, threshold=2.5), (32, 8))
    base = load_model(str(tiny_model_path))
    assert result.base == evaluator(base)
    documents = Pairs.from_judgments(split.train, threshold=2.5).documents
    add_rotation(base, fit_rotation(embed(base, documents, kind="document")))
    assert result.before == pytest.approx(evaluator(base), abs=0.02)
    assert result.after == evaluator(load_model(str(folder / "model")))
    by_epoch = [entry[f"eval_{MEAN}"] for entry in result.history if f"eval_{MEAN}" in entry]
    assert result.after[MEAN] == pytest.approx(by_epoch[-1], abs=0.02)


def test_the_optimizer_holds_the_layer_alone(split: Split, spec: TrainingSpec, tmp_path: Path):
    import torch

    with pytest.raises(KilledError):
        trained(split, spec, tmp_path, report=dying_at(3))
    checkpoint = last_checkpoint(tmp_path / "work" / "finetune")
    assert checkpoint is not None
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    assert sum(len(group["params"]) for group in state["param_groups"]) == 1
    assert [tuple(each["exp_avg"].shape) for each in state["state"].values()] == [(32, 32)]


def test_a_killed_training_resumes_to_the_same_weights(
    split: Split, spec: TrainingSpec, unbroken: tuple[TrainingResult, Path], tmp_path: Path
):
    whole, folder = unbroken
    with pytest.raises(KilledError):
        trained(split, spec, tmp_path, report=dying_at(whole.steps // 2 + 2))
    resumed = trained(split, spec, tmp_path)
    assert resumed.resumed_at == whole.steps // 2 + 1
    assert resumed.after == whole.after
    one, other = weights(folder), weights(tmp_path)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_vectors_are_kept_for_the_next_training_of_the_same_texts(
    split: Split, spec: TrainingSpec, tmp_path: Path, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kept = TrainingSpec(spec.base, "adapter", SETTINGS, 2.5, cache=tmp_path)
    first = with_adapter(load_model(str(tiny_model_path)))
    batch_of(split, kept, first)
    files = sorted(tmp_path.glob("vectors-*.npz"))
    assert len(files) == 2

    def refuse(*_: object, **__: object) -> np.ndarray:
        raise AssertionError("embedded again")

    again = with_adapter(load_model(str(tiny_model_path)))
    with monkeypatch.context() as patched:
        patched.setattr(module, "embed", refuse)
        batch_of(split, kept, again)
    assert np.array_equal(layer_of(again).linear.weight.detach(), layer_of(first).linear.weight.detach())
    files[0].write_bytes(files[0].read_bytes()[:50])
    batch_of(split, kept, with_adapter(load_model(str(tiny_model_path))))
    assert np.load(files[0])["x"].shape[1] == 32


def test_vectors_of_another_length_limit_are_others(
    split: Split, spec: TrainingSpec, tmp_path: Path, tiny_model_path: Path
):
    kept = TrainingSpec(spec.base, "adapter", SETTINGS, 2.5, cache=tmp_path)
    batch_of(split, kept, with_adapter(load_model(str(tiny_model_path))))
    cut = load_model(str(tiny_model_path))
    cut.max_seq_length = 8
    batch_of(split, kept, with_adapter(cut))
    assert len(list(tmp_path.glob("vectors-*.npz"))) == 4


def test_an_adapter_can_be_put_on_an_adapter(
    split: Split, spec: TrainingSpec, unbroken: tuple[TrainingResult, Path], tmp_path: Path
):
    settings = spec.settings.model_copy(update={"epochs": 1})
    trained(split, replace(spec, base=find_model(str(unbroken[1] / "model")), settings=settings), tmp_path)
    one, other = weights(unbroken[1]), weights(tmp_path)
    assert set(other) - set(one) == {"3.linear.weight"}
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_pairs_from_the_middle_of_the_scale_upwards_are_positives_unless_told_otherwise(
    split: Split, spec: TrainingSpec
):
    def examples(**changes: float) -> int:
        return len(
            inputs_of(split.train, TrainingSpec(spec.base, "adapter", layered_on(SETTINGS, **changes), 2.5)).examples
        )

    assert examples() == len(Pairs.from_judgments(split.train, threshold=1.998))
    assert examples(positives_above=2.5) == len(Pairs.from_judgments(split.train, threshold=2.5)) < examples()


def test_no_positive_pair_is_refused(spec: TrainingSpec, model: SentenceTransformer):
    frame = pl.DataFrame({"query": ["saw"], "document": ["drill bit"], "score": [1.0]})
    low = Judgments.from_frame(frame, scale=(1, 3))
    with pytest.raises(InputError, match="no training pair is scored above"):
        inputs_of(low, spec, model)

"""Trainings with a cross-encoder as teacher: their order, what is kept, interruptions; and the student's batches."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures.training import KilledError, dying_at, keep_every_step, settings_of, trained_with_notes
from nestling.config.recipes import RECIPES
from nestling.config.training import Distill
from nestling.errors import InputError
from nestling.judgments.split import Split, split_judgments
from nestling.judgments.toolshed import generate
from nestling.models.load import find_model, load_model
from nestling.training.batches.batching import Pairs
from nestling.training.cross_encoder import Candidates, RerankEvaluator, logits
from nestling.training.inputs.static import build_static
from nestling.training.losses.contrastive import ContrastiveLoss, PairValues
from nestling.training.result import TrainingResult, read_result
from nestling.training.spec import TrainingInputs, TrainingSpec
from nestling.training.steps.distill import DRAWN, N_MINED, N_RERANKED, N_SCORED, _better, distilled
from nestling.training.steps.guard import Figures, Guard

FIGURES = {"dev_recall@10": 0.5, "dev_mrr@10": 0.5}


def trained(
    split: Split, tiny_model_path: Path, folder: Path, recipe: str = "mnrl", **settings: object
) -> tuple[TrainingResult, list[str]]:
    return trained_with_notes(split, tiny_model_path, folder, recipe, epochs=1, **settings)


def be_helpful(patch: pytest.MonkeyPatch) -> None:
    """Take teacher and student whatever they are worth: a random transformer teaches nothing. Leave their folders."""
    patch.setattr("nestling.training.steps.distill._better", lambda after, before: True)
    patch.setattr("nestling.training.trainer.clear", lambda work: None)
    patch.setattr("nestling.training.steps.distill.AT_ONCE", 300)
    patch.setattr(RerankEvaluator, "__call__", lambda *_, **__: dict(FIGURES))
    keep_every_step(patch)


@pytest.fixture(scope="module")
def split() -> Split:
    return split_judgments(generate(300, seed=0), test=0.2, dev=0.3, seed=0)


@pytest.fixture
def helpful(monkeypatch: pytest.MonkeyPatch) -> None:
    be_helpful(monkeypatch)


@pytest.fixture(scope="module")
def whole(
    split: Split, tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainingResult, list[str], Path]:
    """A training whose student was kept: its result, what was said, and its folder with those of all steps."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        be_helpful(patch)
        return (*trained(split, tiny_model_path, folder, distill={"weight": 1.0}), folder)


@pytest.fixture
def begun(whole: tuple[TrainingResult, list[str], Path], tmp_path: Path) -> Path:
    """The same training, ended before what the cross-encoder taught was judged."""
    shutil.copytree(whole[2] / "work", tmp_path / "work")
    (tmp_path / "work" / "summary.json").unlink()
    (tmp_path / "work" / "distill" / "result.json").unlink()
    shutil.rmtree(tmp_path / "work" / "distill" / "model")
    return tmp_path


def weights(folder: Path) -> np.ndarray:
    return np.concatenate([value.cpu().numpy().ravel() for value in load_model(str(folder)).state_dict().values()])


def test_the_student_is_what_becomes_the_model(whole: tuple[TrainingResult, list[str], Path]):
    result, notes, folder = whole
    assert [note for note in notes if note.startswith("the ") and note.endswith(":")] == [
        "the cross-encoder:",
        "the student:",
    ]
    work = folder / "work" / "distill"
    read = Candidates.load(work / "scored.npz")
    assert read.logits is not None
    assert read.documents.shape[1] == N_SCORED
    assert Candidates.load(work / "mined.npz").documents.shape[1] == N_MINED
    assert Candidates.load(work / "dev.npz").documents.shape[1] == N_RERANKED
    first, student = folder / "work" / "finetune", work / "student" / "model"
    assert not np.array_equal(weights(first / "model"), weights(student))
    np.testing.assert_array_equal(weights(folder / "model"), weights(student))
    alone = read_result(first)
    assert (result.steps, result.base) == (alone.steps, alone.base)
    assert result.seconds > alone.seconds


def test_a_teacher_that_knows_no_more_is_left_out(
    split: Split, tiny_model_path: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.rmtree(begun / "work" / "distill" / "student")
    (begun / "work" / "distill" / "scored.npz").unlink()
    first, alone = weights(begun / "work" / "finetune" / "model"), read_result(begun / "work" / "finetune")
    monkeypatch.setattr("nestling.training.steps.distill._better", lambda after, before: False)
    result, notes = trained(split, tiny_model_path, begun, distill={"weight": 1.0})
    assert any("ranked no better than without" in note for note in notes)
    assert "the student:" not in notes
    assert any("ranked no better than without" in line for line in result.left_out)
    np.testing.assert_array_equal(weights(begun / "model"), first)
    assert result.after == pytest.approx(alone.after)


def test_what_was_taught_and_is_no_better_on_dev_is_left_out(
    split: Split, tiny_model_path: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
):
    keep, taught = Guard.keep, "what the cross-encoder taught"

    def refusing(self: Guard, step: str, options: list[Figures], without: Figures) -> int | None:
        return keep(self, step, [without - 1] if step == taught else options, without)

    first = weights(begun / "work" / "finetune" / "model")
    monkeypatch.setattr("nestling.training.steps.distill._better", lambda after, before: True)
    monkeypatch.setattr(Guard, "keep", refusing)
    result, notes = trained(split, tiny_model_path, begun, distill={"weight": 1.0})
    lines = [line for line in result.left_out if line.startswith(f"{taught}: dev recall@10")]
    assert len(lines) == 1
    assert f"left out: {lines[0]}" in notes
    np.testing.assert_array_equal(weights(begun / "model"), first)


def test_better_is_more_and_not_as_much():
    assert _better({**FIGURES, "dev_mrr@10": 0.51}, FIGURES)
    assert not _better(dict(FIGURES), FIGURES)
    assert not _better({**FIGURES, "dev_recall@10": 0.49}, FIGURES)


@pytest.mark.usefixtures("helpful")
def test_an_interrupted_training_goes_on_where_it_was(
    split: Split,
    tiny_model_path: Path,
    whole: tuple[TrainingResult, list[str], Path],
    begun: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    scored = 0

    def stopping(*given: object, **options: object) -> np.ndarray:
        nonlocal scored
        scored += 1
        if scored == 3:
            raise KeyboardInterrupt
        return logits(*given, **options)  # type: ignore[arg-type]

    def go_on(**options: object) -> tuple[TrainingResult, list[str]]:
        return trained(split, tiny_model_path, begun, distill={"weight": 1.0}, **options)

    work = begun / "work" / "distill"
    shutil.rmtree(work)
    torch.manual_seed(1)
    # The cross-encoder's training dies in its second epoch, then goes on from its checkpoint.
    with pytest.raises(KilledError):
        go_on(report=dying_at(read_result(whole[2] / "work" / "distill" / "cross-encoder").steps // 2 + 2))
    assert list((work / "cross-encoder").glob("checkpoint-*"))
    for name, stand_in in {
        "nestling.training.steps.distill.logits": stopping,
        "nestling.training.steps.context.Guard": interrupted,
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(name, stand_in)
            with pytest.raises(KeyboardInterrupt):
                go_on()
        assert not (begun / "model").exists()
        assert (work / "scored.blocks").is_dir() == (stand_in is stopping)
    assert read_result(work / "cross-encoder").resumed_at is not None
    again, notes = go_on()
    assert not {"the cross-encoder:", "the student:"} & set(notes)
    assert again.after == whole[0].after
    np.testing.assert_array_equal(weights(whole[2] / "model"), weights(begun / "model"))


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_static_base_is_refused_before_anything_is_trained(split: Split, tiny_model_path: Path, tmp_path: Path):
    table = build_static(find_model(str(tiny_model_path)), split.train.frame["query"].to_list())
    table.save_pretrained(str(tmp_path / "static"), create_model_card=False)
    with pytest.raises(InputError, match="is static; a cross-encoder needs a transformer"):
        trained(split, tmp_path / "static", tmp_path, distill={"weight": 1.0})
    assert not (tmp_path / "work").exists()


def test_distilled_is_graded_with_a_teacher():
    distilled, graded = RECIPES["distilled"], RECIPES["graded"]
    assert [step for step in distilled.steps if not isinstance(step, Distill)] == list(graded.steps)
    assert len(distilled.steps) == len(graded.steps) + 1
    assert distilled.training == graded.training


@pytest.mark.parametrize(("recipe", "fast"), [("cosent", True), ("mnrl", False)])
def test_a_loss_of_the_library_has_no_teacher(recipe: str, fast: bool):
    steps = settings_of(recipe, distill={"weight": 1.0}, fast=fast).steps
    assert not any(isinstance(step, Distill) for step in steps)


JUDGMENTS = generate(400, seed=0)
PAIRS = Pairs.from_judgments(JUDGMENTS, threshold=1.999)


PSEUDO = [f"{query} heavy duty" for query in PAIRS.queries[:50]]


def candidates(k: int = 14) -> Candidates:
    rng = np.random.default_rng(0)
    documents = np.array([rng.permutation(len(PAIRS.documents))[:k] for _ in [*PAIRS.queries, *PSEUDO]])
    return Candidates(documents, *(rng.random((2, *documents.shape)).astype(np.float32)))


def inputs(base: Path, found: Candidates, recipe: str = "graded", **settings: float) -> TrainingInputs:
    options = settings_of(recipe, distill={"weight": 0.7}, finetune={"positives_above": 1.999, **settings})
    spec = TrainingSpec(find_model(str(base)), recipe, options, 2.5)
    return distilled(JUDGMENTS, spec, load_model(str(base)), found, PSEUDO)


def test_the_teacher_knows_the_candidates_alone_by_cosine_and_logit(tiny_model_path: Path):
    found = candidates()
    teacher = inputs(tiny_model_path, found, scale=15.0).loss.teacher
    queries, documents = torch.tensor([5, 0, 3]), torch.randperm(len(PAIRS.documents))
    scores = teacher(queries, documents)
    for row, query in enumerate(queries.tolist()):
        for column, document in enumerate(documents.tolist()):
            place = np.flatnonzero(found.documents[query] == document)
            if len(place):
                expected = 15.0 * found.similarities[query, place[0]] + found.logits[query, place[0]]  # type: ignore[index]
                assert scores[row, column].item() == pytest.approx(float(expected), rel=1e-5)
            else:
                assert scores[row, column].isnan()


def test_a_batch_holds_all_that_raters_saw_of_its_queries_and_some_candidates(tiny_model_path: Path):
    found = candidates()
    made = inputs(tiny_model_path, found)
    assert len(made.examples) == len(PAIRS.queries) + len(PSEUDO)
    new = len(PAIRS.queries) + 3
    rows = [{"row": row} for row in (7, new, 2)]
    batch = made.collator(rows)  # type: ignore[misc]
    label = {name: value.numpy() for name, value in batch["label"].items()}
    assert label["query"].tolist() == [2, 7, new]
    tokenizer = made.loss.model.tokenizer
    expected = tokenizer([PAIRS.queries[2], PAIRS.queries[7], PSEUDO[3]])["input_ids"]
    masks = batch["anchor_attention_mask"].bool()
    assert [ids[mask].tolist() for ids, mask in zip(batch["anchor_input_ids"], masks, strict=True)] == expected
    documents = label["document"]
    assert len(set(documents.tolist())) == len(documents) == len(batch["document_input_ids"])
    judged = set(PAIRS.judged_document[np.isin(PAIRS.judged_query, label["query"])].tolist())
    assert judged <= set(documents.tolist())
    for query in label["query"]:
        assert np.isin(found.documents[query], documents).sum() >= DRAWN
    others = set(documents.tolist()) - judged
    assert others <= set(found.documents[label["query"]].ravel().tolist())
    pairs = set(zip(label["query"][label["anchor"]].tolist(), documents[label["positive"]].tolist(), strict=True))
    mine = np.isin(PAIRS.query, label["query"])
    assert pairs == set(zip(PAIRS.query[mine].tolist(), PAIRS.document[mine].tolist(), strict=True))
    again = made.collator(rows)  # type: ignore[misc]
    assert torch.equal(again["label"]["document"], batch["label"]["document"])


def test_fewer_candidates_than_are_drawn_are_all_taken(tiny_model_path: Path):
    found = candidates(3)
    batch = inputs(tiny_model_path, found).collator([{"row": 4}])  # type: ignore[misc]
    assert np.isin(found.documents[4], batch["label"]["document"].numpy()).all()


@pytest.mark.parametrize("recipe", ["graded", "mnrl"])
def test_the_loss_is_taught_and_finite_where_no_query_has_a_positive(recipe: str, tiny_model_path: Path):
    made = inputs(tiny_model_path, candidates(), recipe, positives_above=2.9)
    pairs = Pairs.from_judgments(JUDGMENTS, threshold=2.9)
    assert made.loss.teacher_weight == 0.7
    assert made.loss.graded == (recipe == "graded")
    without = np.setdiff1d(np.arange(len(pairs.queries)), pairs.query)
    assert len(without)
    for rows in (without[:3], pairs.query[:3]):
        device = made.loss.model.device
        made.loss.to(device)
        batch = made.collator([{"row": int(row)} for row in rows])  # type: ignore[misc]
        label = {name: value.to(device) for name, value in batch.pop("label").items()}
        columns = [
            {name.removeprefix(side): value.to(device) for name, value in batch.items() if name.startswith(side)}
            for side in ("anchor_", "document_")
        ]
        made.loss.zero_grad()
        value = made.loss(columns, label)
        value.backward()
        assert torch.isfinite(value)
        assert value.item() > 0
        gradients = [each.grad for each in made.loss.model.parameters() if each.grad is not None]
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert any(gradient.any() for gradient in gradients)


def test_what_nobody_judged_among_the_candidates_is_neither_right_nor_wrong(tiny_model_path: Path):
    found = candidates()
    ignored = inputs(tiny_model_path, found).loss.ignored
    queries, documents = torch.arange(len(found.documents)), torch.arange(len(PAIRS.documents))
    expected = np.zeros((len(queries), len(documents)), dtype=bool)
    np.put_along_axis(expected, found.documents, True, axis=1)
    expected[PAIRS.judged_query, PAIRS.judged_document] = False
    np.testing.assert_array_equal(ignored(queries, documents).numpy() > 0, expected)


@pytest.mark.parametrize("graded", [False, True])
def test_a_spared_pair_is_no_negative_and_no_positive(graded: bool):
    known = PairValues(np.array([0]), np.array([0]), np.array([1.0]), n_documents=3)
    ignored = PairValues(np.array([0]), np.array([2]), np.array([1.0]), n_documents=3)
    numbers = {"query": [0], "document": [0, 1, 2], "anchor": [0], "positive": [0]}
    label = {name: torch.tensor(value) for name, value in numbers.items()}
    queries, documents = torch.randn(1, 4), torch.randn(3, 4)
    loss = ContrastiveLoss(torch.nn.Identity(), known, graded=graded, ignored=ignored)  # type: ignore[arg-type]
    plain = ContrastiveLoss(torch.nn.Identity(), known, graded=graded)  # type: ignore[arg-type]
    expected = plain.of_embeddings(queries, documents[:2], {**label, "document": torch.tensor([0, 1])})
    assert loss.of_embeddings(queries, documents, label).item() == pytest.approx(expected.item(), rel=1e-5)

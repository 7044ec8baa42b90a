"""Exports of every kind of model keep its vectors; what loses quality or cannot be exported is refused, whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import CNN, Dense, Normalize, StaticEmbedding

from fixtures.training import join
from nestling.cli import export as cli_export
from nestling.errors import InputError
from nestling.evaluation.benchmark import Vectors
from nestling.evaluation.cell_search import Fitted
from nestling.evaluation.cells import Cell
from nestling.judgments.split import split_judgments
from nestling.judgments.split_files import write_split
from nestling.judgments.toolshed import generate
from nestling.models.encoder import load_shrunk
from nestling.models.exported_encoder import CODEC, MANIFEST, ExportedEncoder
from nestling.models.load import find_model
from nestling.models.torch_encoder import embed
from nestling.retrieval.rotation import append_linear
from nestling.serving.export import check as export_check
from nestling.serving.export import export as exporting
from nestling.serving.export.check import Check, Speed, agreement
from nestling.serving.export.export import Exported, export
from nestling.study import shrink

TEXTS = ["drill", "a hand saw, 12 inch", "white steel door " * 40, "Écru DOOR <b>", "cordless drill with two batteries"]
Save = Callable[[SentenceTransformer], str]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"TIMED_DOCUMENTS": 8, "TIMED_QUERIES": 2, "ROUNDS": 1}.items():
        monkeypatch.setattr(export_check, name, value)
    monkeypatch.setattr(exporting, "CATALOGUE", 150)
    monkeypatch.setattr(exporting, "CALIBRATION", 3)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def saved(model: SentenceTransformer) -> str:
        model.save_pretrained(str(tmp_path / "given"), create_model_card=False)
        return str(tmp_path / "given")

    return saved


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged") / "split"
    write_split(split_judgments(generate(300, seed=0), dev=0.2), folder)
    return folder


@pytest.fixture(scope="module")
def exported(tiny_model_path: Path, split: Path) -> Exported:
    """The export of a model in a run's folder, checked on the run's split."""
    run = split.parent
    (run / "models").mkdir()
    (run / "models" / "tiny").symlink_to(tiny_model_path)
    return export(str(run / "models" / "tiny"), run / "out")


def fresh(path: Path) -> SentenceTransformer:
    return SentenceTransformer(str(path), device="cpu")


def static(path: Path, *, dim: int = 16) -> SentenceTransformer:
    tokenizer = fresh(path).tokenizer
    rows = np.random.default_rng(0).standard_normal((len(tokenizer), dim)).astype(np.float32)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, rows), Normalize()], device="cpu")


def same(done: Exported, model: SentenceTransformer, *, atol: float = 1e-5) -> None:
    encoder = ExportedEncoder.open(done.folder)
    for kind in ("query", "document"):
        np.testing.assert_allclose(encoder.encode(TEXTS, kind=kind), embed(model, TEXTS, kind=kind), atol=atol)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_transformer_with_given_prompts_encodes_as_the_library_does_with_them(
    format: Any, tiny_model_path: Path, tmp_path: Path
):
    prompts = {"query": "drill: ", "document": "saw: "}
    done = export(str(tiny_model_path), tmp_path / "out", format=format, prompts=prompts)
    library = SentenceTransformer(str(tiny_model_path), device="cpu", prompts=prompts)
    encoder = ExportedEncoder.open(done.folder)
    assert encoder.fingerprint == find_model(str(tiny_model_path), prompts=prompts).fingerprint
    for kind, encode in (("query", library.encode_query), ("document", library.encode_document)):
        np.testing.assert_allclose(encoder.encode(TEXTS, kind=kind), encode(TEXTS), atol=1e-5)
    assert (done.check.texts, done.check.agreement) == ("toolshed", 1.0)
    assert done.check.recall_exported == done.check.recall_torch


def test_a_linear_layer_before_the_normalisation_is_exported_too(tiny_model_path: Path, tmp_path: Path, save: Save):
    model = fresh(tiny_model_path)
    append_linear(model, np.linalg.qr(np.random.default_rng(0).standard_normal((32, 32)))[0][:, :8].astype(np.float32))
    done = export(save(model), tmp_path / "out")
    assert done.dim == 8
    same(done, model)


def test_prompts_go_along_with_the_kind_of_text(tiny_model_path: Path, tmp_path: Path, save: Save):
    model = static(tiny_model_path)
    model.prompts = {"query": "drill: ", "document": "saw: "}
    done = export(save(model), tmp_path / "out")
    same(done, fresh(Path(save(model))))
    encoder = ExportedEncoder.open(done.folder)
    assert encoder.prompts == {"query": "drill: ", "document": "saw: "}


def test_a_transformer_joined_with_a_table_is_one_graph(tiny_model_path: Path, tmp_path: Path, save: Save):
    texts = generate(100, seed=0).frame["document"].to_list()
    model = join(fresh(tiny_model_path), static(tiny_model_path, dim=32), texts[:40], texts)
    same(export(save(model), tmp_path / "out"), model)


def test_a_static_model_becomes_a_table_with_its_linear_layers_in_it(tiny_model_path: Path, tmp_path: Path, save: Save):
    model = static(tiny_model_path)
    append_linear(model, np.random.default_rng(1).standard_normal((16, 4)).astype(np.float32))
    done = export(save(model), tmp_path / "out")
    assert (done.format, done.dim) == ("table", 4)
    assert sorted(path.name for path in done.folder.iterdir()) == [MANIFEST, "table.safetensors", "tokenizer.json"]
    same(done, model)
    assert not ExportedEncoder.open(done.folder).encode([""]).any()


def test_a_static_model_in_int8_is_near_and_a_quarter_of_the_size(tiny_model_path: Path, tmp_path: Path, save: Save):
    model = static(tiny_model_path, dim=64)
    whole, small = (export(save(model), tmp_path / p, precision=p) for p in ("fp32", "int8"))
    same(small, model, atol=0.01)
    sizes = [(done.folder / "table.safetensors").stat().st_size for done in (whole, small)]
    assert sizes[1] < 0.35 * sizes[0]


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_int8_is_near_float32(
    format: Any, tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.setattr("nestling.serving.export.formats.LARGE_TABLE", 1000)
    done = export(str(tiny_model_path), tmp_path / "out", format=format, precision="int8", force=True)
    found, expected = ExportedEncoder.open(done.folder).encode(TEXTS), fresh(tiny_model_path).encode(TEXTS)
    assert (found * expected).sum(axis=1).min() > 0.97
    assert np.abs(found - expected).max() > 1e-5
    assert not capsys.readouterr().out


@pytest.mark.parametrize(("dim", "oversampling"), [(8, 0), (8, 4)])
def test_what_shrink_wrote_keeps_its_size_rotation_and_codec(
    dim: int, oversampling: int, tiny_model_path: Path, tmp_path: Path, split: Path
):
    cell = Cell(dim, "binary", "pca", oversampling)
    texts = generate(100, seed=0).frame["document"].to_list()
    vectors = embed(fresh(tiny_model_path), texts, kind="document")
    fitted = Fitted(lambda: Vectors(vectors[:20], vectors))
    about = {"dim": dim, "oversampling": oversampling, "precision": "binary", "rotation": "pca"}
    shrink.write_shrunk(find_model(str(tiny_model_path)), cell, fitted, tmp_path / "small", about=about)

    done = export(str(tmp_path / "small"), tmp_path / "out", split=split)

    encoder = ExportedEncoder.open(done.folder)
    assert encoder.codec == fitted.codec(cell)
    assert encoder.oversampling == oversampling
    assert encoder.dim == (32 if oversampling else dim)
    assert (done.folder / CODEC).is_file()
    same(done, load_shrunk(tmp_path / "small")[0])
    assert (done.check.texts, done.check.agreement) == ("dev", 1.0)


def test_the_manifest_lists_every_file_with_its_digest_and_the_source(exported: Exported, tiny_model_path: Path):
    about = json.loads((exported.folder / MANIFEST).read_text())
    for name, digest in about["files"].items():
        assert hashlib.sha256((exported.folder / name).read_bytes()).hexdigest() == digest
    assert {*about["files"], MANIFEST} == {path.name for path in exported.folder.iterdir()}
    assert about["source"]["fingerprint"] == find_model(str(tiny_model_path)).fingerprint
    assert about["check"]["texts"] == "dev"


def test_an_export_that_loses_too_much_is_not_written_unless_forced(
    tiny_model_path: Path, tmp_path: Path, split: Path, monkeypatch: pytest.MonkeyPatch, save: Save
):
    model, honest = save(static(tiny_model_path)), ExportedEncoder.encode

    def bad(self: ExportedEncoder, texts: Any, **options: Any) -> Any:
        return np.roll(honest(self, texts, **options), 1, axis=0)

    monkeypatch.setattr(ExportedEncoder, "encode", bad)
    with pytest.raises(InputError, match=r"is not written: recall@10 on dev falls from .* --force"):
        export(model, tmp_path / "out", split=split)
    assert [path.name for path in tmp_path.iterdir()] == ["given"]
    with pytest.raises(InputError, match=r"nearest documents on the generated catalogue"):
        export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()

    done = export(model, tmp_path / "out", split=split, force=True)
    recorded = json.loads((done.folder / MANIFEST).read_text())["check"]
    assert recorded["loss"] == done.check.loss > 0.005
    assert "falls from" in recorded["fault"]


def test_a_model_in_a_runs_folder_is_checked_on_the_runs_split(exported: Exported):
    assert exported.check.texts == "dev"


def test_what_cannot_be_exported_is_refused_in_one_line(tiny_model_path: Path, tmp_path: Path, save: Save):
    out, tiny = tmp_path / "out", str(tiny_model_path)
    with pytest.raises(InputError, match="no fast bf16"):
        export(tiny, out, precision="bf16")
    with pytest.raises(InputError, match="exists"):
        export(tiny, tiny_model_path)
    model = fresh(tiny_model_path)
    model.insert(1, CNN(32, 32))
    with pytest.raises(InputError, match="module 1 is a CNN, which cannot be exported"):
        export(save(model), out)
    with pytest.raises(InputError, match="fp32 or int8, not in bf16"):
        export(save(static(tiny_model_path)), out, format="openvino", precision="bf16")
    assert not out.exists()


def test_a_static_model_with_a_layer_that_is_not_linear_is_refused(tiny_model_path: Path, tmp_path: Path, save: Save):
    model = static(tiny_model_path)
    model.append(Dense(16, 4, activation_function=torch.nn.Tanh()))
    with pytest.raises(InputError, match="module 2 of the static model is a Dense that is not linear"):
        export(save(model), tmp_path / "out")


def test_the_loss_is_relative_and_the_limit_half_a_percent():
    def fault(torch_recall: float, recall: float, texts: str = "dev", share: float = 1.0) -> str:
        speed = Speed(1.0, 1.0, 1.0)
        return Check(texts, 1, 1, torch_recall, recall, share, 1.0, 1.0, speed, speed, 1).fault

    assert not fault(0.8, 0.7961)
    assert "by 0.51% of it" in fault(0.8, 0.7959)
    assert not fault(0.8, 0.9)
    assert not fault(0.8, 0.1, "toolshed", 0.9)
    assert "89.0%" in fault(0.8, 0.8, "toolshed", 0.89)
    assert fault(0.8, 0.8, "toolshed", float("nan"))


def test_agreement_is_the_share_of_common_documents_in_any_order():
    assert agreement(np.array([[1, 2], [3, 4]]), np.array([[2, 1], [4, 9]])) == 0.75


def test_the_verb_prints_a_table_of_80_columns_and_json(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(exporting, "export", lambda *_, **__: exported)
    cli_export.export("tiny", exported.folder)
    printed = capsys.readouterr().out
    assert "torch fp32" in printed
    assert "onnx fp32" in printed
    assert max(map(len, printed.split("size")[0].splitlines())) <= 80
    cli_export.export("tiny", exported.folder, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == sum(path.stat().st_size for path in exported.folder.iterdir())
    assert found["check"]["fault"] == ""

"""The light runtime: the same tokens and vectors as sentence-transformers, without its packages, from checked files."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from fixtures.serving import closed
from nestling.errors import InputError
from nestling.models.exported_encoder import MANIFEST, ExportedEncoder, Table
from nestling.models.tokens import Tokens
from nestling.serving.export.export import export

TEXTS = ["drill", "", "a hand saw, 12 inch", "white steel door " * 40, "Écru 漢字 <b>&amp;</b> \u200b", "drill"]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from(
    [
        "[CLS] drill [SEP]",
        "[MASK]",
        "DRILL\x00saw",
        "e\u0301\u0323",
        "\U0001f528\ufe0f\u202e",
        "hammer " * 99,
        "İSTANBUL ß",
    ]
)


@pytest.fixture(scope="module")
def folder(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(str(tiny_model_path), tmp_path_factory.mktemp("exported") / "onnx").folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> ExportedEncoder:
    return ExportedEncoder.open(folder, threads=1)


def test_vectors_are_those_of_sentence_transformers(encoder: ExportedEncoder, tiny_model: SentenceTransformer):
    found = encoder.encode(TEXTS)
    assert found.dtype == np.float32
    assert found.shape == (len(TEXTS), encoder.dim) == (len(TEXTS), 32)
    np.testing.assert_allclose(found, tiny_model.encode(TEXTS), atol=1e-5)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=ANY_TEXT)
def test_any_text_has_the_tokens_that_sentence_transformers_gives_it(
    text: str, encoder: ExportedEncoder, tiny_model: SentenceTransformer
):
    expected = tiny_model.preprocess([text])["input_ids"][0].tolist()
    assert encoder._tokens.ids([text]) == [expected]


def test_a_lone_surrogate_is_read_as_a_question_mark(encoder: ExportedEncoder):
    broken, plain = encoder.encode(["drill \ud800"]), encoder.encode(["drill ?"])
    np.testing.assert_array_equal(broken, plain)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(others=st.lists(ANY_TEXT, max_size=8), size=st.integers(1, 5))
def test_a_vector_depends_neither_on_the_texts_beside_it_nor_on_the_batch_size(
    others: list[str], size: int, encoder: ExportedEncoder
):
    alone = encoder.encode(["cordless drill"])[0]
    beside = encoder.encode([*others, "cordless drill"], batch_size=size)[-1]
    np.testing.assert_allclose(beside, alone, atol=1e-5)


def test_several_threads_get_what_one_gets(encoder: ExportedEncoder):
    texts = [f"{word} {i}" for i in range(40) for word in ("drill", "white saw", "steel door with water heater")]
    expected = encoder.encode(texts, batch_size=8)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: encoder.encode(texts, batch_size=8), range(8)))
    for each in found:
        np.testing.assert_allclose(each, expected, atol=1e-6)


def test_no_texts_give_no_rows(encoder: ExportedEncoder):
    assert encoder.encode([]).shape == (0, 32)


def test_one_string_in_place_of_a_list_is_refused(encoder: ExportedEncoder):
    with pytest.raises(ValueError, match="list of texts"):
        encoder.encode("drill")


def test_encoding_needs_neither_torch_nor_transformers_nor_a_data_frame(folder: Path, tiny_model: SentenceTransformer):
    blocked = ("torch", "transformers", "sentence_transformers", "polars", "pyarrow", "scipy", "pydantic", "openvino")
    code = f"""
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import json
from nestling.models.exported_encoder import ExportedEncoder
print(json.dumps(ExportedEncoder.open({str(folder)!r}).encode({TEXTS!r}).tolist()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.array(json.loads(done.stdout)), tiny_model.encode(TEXTS), atol=1e-5)


def test_a_missing_engine_is_named_with_the_line_that_installs_it(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install 'nestling\[runtime\]'"):
        ExportedEncoder.open(folder)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_damaged_file_is_refused(name: str, folder: Path, tmp_path: Path):
    copy = copied(folder, tmp_path)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: damaged"):
        ExportedEncoder.open(copy)


def test_a_missing_file_is_named(folder: Path, tmp_path: Path):
    copy = copied(folder, tmp_path)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json: no such file"):
        ExportedEncoder.open(copy)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"nestling_runtime": 99}, "form 99 is not 1"),
        ({"format": "pickle"}, "format must be one of onnx, openvino, table"),
        ({"files": None}, "files must be an object, not null"),
        ({"files": {"model.onnx": 7}}, r"files\.model\.onnx must be text, not 7"),
        ({"files": {"\0": "a"}}, "no such file"),
        ({"source": {}}, r"lacks source\.fingerprint"),
        ({"dim": "32"}, 'dim must be a whole number, not "32"'),
        ({"dim": 0}, "dim must be 1 or more, not 0"),
        ({"max_seq_length": []}, r"max_seq_length must be a whole number, not \[\]"),
        ({"prompts": {"query": 1}}, r"prompts\.query must be text, not 1"),
        ({"tokenizer": {"special": 1, "pad_id": 0, "pad_side": "left"}}, r"tokenizer\.special must be true or false"),
        ({"tokenizer": {"special": True, "pad_id": 0, "pad_side": "up"}}, r"tokenizer\.pad_side must be one of left"),
        ({"shrunk": {"oversampling": "4"}}, r"shrunk\.oversampling must be a whole number"),
        ({"shrunk": 4}, "shrunk must be an object, not 4"),
    ],
)
def test_a_manifest_of_another_form_is_refused_by_file_and_key(change: dict, what: str, folder: Path, tmp_path: Path):
    copy = copied(folder, tmp_path)
    about = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**about, **change}))
    with pytest.raises(InputError, match=rf"{MANIFEST}.*{what}|{what}.*{MANIFEST}"):
        ExportedEncoder.open(copy)


@pytest.mark.parametrize("name", [MANIFEST, "model.onnx", "tokenizer.json"])
def test_a_file_that_may_not_be_read_is_not_called_missing(name: str, folder: Path, tmp_path: Path):
    copy = copied(folder, tmp_path)
    with closed(copy / name), pytest.raises(InputError, match=rf"cannot read .*{name}: permission denied"):
        ExportedEncoder.open(copy)


def test_a_folder_of_another_kind_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="give a folder that export wrote"):
        ExportedEncoder.open(tmp_path)


def test_a_table_gives_the_mean_of_its_rows_and_zeros_for_no_piece():
    table = Table(np.array([[1, 0], [0, 2], [4, 4]], dtype=np.float32))
    np.testing.assert_array_equal(table.mean([[0, 2], [], [0, 1]]), [[2.5, 2.0], [0.0, 0.0], [0.5, 1.0]])


def test_rows_are_padded_on_the_side_that_the_model_asks_for():
    ids, mask = Tokens(None, pad_id=9, pad_side="left").padded([[1, 2, 3], [4]])
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    ids, mask = Tokens(None, pad_id=9).padded([[1, 2, 3], [4]])
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def copied(folder: Path, into: Path) -> Path:
    copy = into / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy

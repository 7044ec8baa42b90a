"""Whatever the OpenAPI document allows, and much that it does not, gets an answer that the document describes."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from nestling.serving.service.app import create_app
from nestling.serving.service.service import Service

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
schemathesis = pytest.importorskip("schemathesis")

MODEL = "/v1/models/{model}"
OPERATIONS = [
    *(("POST", path) for path in ("/search", "/embed", "/v1/embeddings", "/compare", "/sizes")),
    *(("GET", path) for path in ("/indexes", "/queries", "/health", "/metrics", "/v1/models", MODEL)),
]
# That an index is there, or has a field, is nothing that the document can say.
EXCLUDED = [schemathesis.checks.positive_data_acceptance]


@pytest.fixture(scope="module")
def schema(service: Service) -> object:
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(service))


def test_the_document_names_every_route_that_answers(schema):
    found = [(one.ok().method.upper(), one.ok().path) for one in schema.get_all_operations()]
    assert sorted(found) == sorted(OPERATIONS)


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
# /embed and /v1/embeddings are one function.
@pytest.mark.parametrize(("method", "path"), [one for one in OPERATIONS if one != ("POST", "/embed")])
def test_every_answer_is_one_that_the_document_describes(schema, method: str, path: str, mode: str):
    operation = schema[path][method]
    if mode == "NEGATIVE" and method == "GET" and path != "/queries":
        pytest.skip("it takes nothing that could be wrong")
    seen = set()

    @given(operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode]))
    @settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def check(case) -> None:
        seen.add(case.call_and_validate(excluded_checks=EXCLUDED).status_code)

    check()
    assert all(status < 500 for status in seen)
    # No made-up name is a model's.
    usual = 404 if path == MODEL else 200
    assert (usual if mode == "POSITIVE" else 422) in seen

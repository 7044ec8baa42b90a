"""The verbs index and search, as a terminal has them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nestling
from nestling.cli.app import main


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_model_path: Path) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    rows = [f"{n},tool number {n},{'Acme' if n % 2 else 'Bolt'}" for n in range(40)]
    (folder / "shop.csv").write_text("sku,title,brand\n" + "\n".join([*rows, "x,,Acme"]) + "\n")
    assert run("index", tiny_model_path, folder / "shop.csv", folder / "index", "--bm25-weight", "0.1") == 0
    return folder


def run(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_index_tells_what_it_did_and_a_second_call_encodes_only_what_is_new(shop: Path, tiny_model_path, capsys):
    more = shop / "more.csv"
    more.write_text((shop / "shop.csv").read_text().replace("tool number 7,", "another tool,") + "y,new thing,Acme\n")
    assert run("index", tiny_model_path, more, shop / "second", "--fields", "brand") == 0
    assert run("index", tiny_model_path, shop / "shop.csv", shop / "second", "--fields", "brand") == 0
    out, err = capsys.readouterr()
    assert "documents   40: 1 texts encoded, 39 documents as before, 1 removed" in out
    assert "all scanned, 40 candidates rescored; 100.0% of the exact top 10" in out
    assert "no weight is known, so it is searched apart; give one with --bm25-weight" in out
    assert "1 rows without a text, left out" in err


def test_search_prints_a_table_that_data_cannot_break_or_json(shop: Path, tmp_path, tiny_model_path, capsys):
    assert run("search", shop / "index", "tool number 12", "-k", "3", "--filter", "brand=bolt", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mode"] == "fused"
    [result] = found["results"]
    assert result["query"] == "tool number 12"
    assert [hit["rank"] for hit in result["hits"]] == [1, 2, 3]
    assert result["hits"][0]["document_id"] == "12"
    assert {hit["fields"]["brand"] for hit in result["hits"]} == {"Bolt"}
    nasty = tmp_path / "nasty.txt"
    nasty.write_text("[bold]saw[/bold] \x1b[31mred\x07\n" + "x" * 1000 + "\n", encoding="utf-8")
    assert run("index", tiny_model_path, nasty, tmp_path / "i") == 0
    capsys.readouterr()
    assert run("search", tmp_path / "i", "[red]saw", "-k", "5") == 0
    out = capsys.readouterr().out
    assert "[bold]saw[/bold]" in out
    assert "[red]saw" in out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_several_queries_are_answered_in_turn_and_nothing_found_is_said(shop: Path, capsys):
    assert run("search", shop / "index", "tool number 3", "tool number 4", "-k", "1") == 0
    out = capsys.readouterr().out
    assert out.index("tool number 3") < out.index("tool number 4")
    assert run("search", shop / "index", "saw", "--filter", "brand=nobody") == 0
    assert "nothing found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("search", "INDEX"), "search needs a query after the index"),
        (("search", "INDEX", "a", "-k", "0"), "-k must be 1 or more, not 0"),
        (("search", "INDEX", "a", "--filter", "brand"), "--filter 'brand': give FIELD=VALUE"),
        (("search", "INDEX", "a", "--filter", "size=1"), "no field 'size' to filter by; this index has brand"),
        (("search", "nowhere", "a"), "nowhere is no index: it has no manifest.json"),
        (("index", "MODEL", "SHOP", "OUT", "--shortlist", "x"), "--shortlist 'x': give auto or DIMS:PRECISION"),
        (("index", "MODEL", "SHOP", "OUT", "--document", "titel"), "no column 'titel' (did you mean 'title'?)"),
        (("index", "MODEL", "nowhere.csv", "OUT"), "no such file: nowhere.csv"),
        (("index", "nowhere/at-all", "SHOP", "OUT"), "model 'nowhere/at-all'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(shop, tiny_model_path, tmp_path, capsys, arguments, message):
    places = {
        "INDEX": shop / "index",
        "MODEL": tiny_model_path,
        "SHOP": shop / "shop.csv",
        "OUT": tmp_path / "out",
    }
    assert run(*(places.get(argument, argument) for argument in arguments)) == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_index_finds_its_model_from_any_folder(shop: Path, tiny_model_path: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tiny_model_path.parent)
    nestling.index(tiny_model_path.name, shop / "shop.csv", tmp_path / "i")
    monkeypatch.chdir(tmp_path)
    assert nestling.Index.open("i").search(["tool number 5"], 1)[0][0].document_id == "5"


def test_a_notebook_indexes_and_searches_by_two_names(shop: Path, tiny_model_path: Path, tmp_path: Path):
    nestling.index(tiny_model_path, shop / "shop.csv", tmp_path / "i")
    index = nestling.Index.open(tmp_path / "i")
    assert index.modes == ("dense", "lexical")
    [hits] = index.search(["tool number 5"], 2)
    assert hits[0].document_id == "5"
    with pytest.raises(ValueError, match="needs the name of its model"):
        nestling.index(index.encoder, shop / "shop.csv", tmp_path / "j")
    assert np.isfinite(hits[0].score)


def test_without_the_studys_packages_the_other_verbs_name_what_to_install(tmp_path: Path):
    script = """
import importlib.util, sys
hidden = ("torch", "transformers", "sentence_transformers", "polars", "pyarrow", "scipy", "pydantic", "datasets")
for name in hidden:
    sys.modules[name] = None
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in hidden else found(name, *rest)
import nestling.cli.app
nestling.cli.app.main(["run"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().endswith(": pip install 'nestling[study]'")
    assert len(done.stderr.strip().splitlines()) == 1

"""The verbs as a user meets them: exit codes, one-line errors, tables, JSON, and a kill in the middle."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nestling.cli.app import main
from nestling.cli.console import TerminalObserver
from nestling.models.load import find_model

NESTLING = [sys.executable, "-m", "nestling"]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run a verb in this process; return exit code, standard output and standard error."""
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as left:
        code = int(left.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "shop.csv"
    rows = [f"drill {n},drill number {n} of kind {m},{m}" for n in range(40) for m in (1, 3)]
    path.write_text("q,title,stars\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def small(tiny_model_path: Path) -> list[str]:
    """Options that make a run of the tiny model."""
    changes = {
        "model": tiny_model_path,
        "evaluation.dims": "[32,8]",
        "training.epochs": 1,
        "training.batch_size": 8,
        "variants": "[pretrained,mnrl]",
    }
    return [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]


def test_help_lists_the_verbs(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert all(verb in out for verb in ("run", "inspect", "split", "train", "evaluate"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nope.csv"], "no such file: nope.csv"),
        (["inspect", "tolshed"], "did you mean 'toolshed'?"),
        (["run", "nope.yaml"], "nope.yaml: no such file or directory"),
        (["run", "--set", "training.epoch=1"], "training.epoch: unknown key; did you mean 'epochs'?"),
        (["train", "s", "o", "--set", "symmetric=true"], "symmetric: was taken out, since it brought nothing"),
        (["run", "--set", "epochs"], "give KEY=VALUE"),
        (["run", "--set", "variants=[nonsense]"], "unknown recipe 'nonsense'"),
        (["run", "--set", "evaluation.dims=[512,48]"], "size 512 is larger than the model's 384 dims"),
        (["run", "--set", "evaluation.dims=[48,96]"], "sizes must fall, as in 96, 48"),
        (["run", "--threshold", "3"], "threshold 3 keeps no pair"),
        (["split", "toolshed", "--records", "60"], "--out"),
        (["split", "toolshed", "x", "--test", "0.95"], "test 0.95 and dev 0.1 leave nothing for train"),
        (["train", "nowhere", "out"], "nowhere is no split"),
        (["evaluate", "nowhere"], "needs at least one model"),
        (["evaluate", "nowhere", "a", "b/a"], "two models are called 'a'"),
        (["sing"], 'Unknown command "sing"'),
        (["train", "s", "m", "--epochs", "3"], "--epochs. It is a setting of the training: give --set epochs=3"),
        (["train", "s", "m", "--batch-size=32"], "give --set batch_size=32"),
        (["run", "--epochs", "3"], "give --set training.epochs=3"),
        (["tune", "x.csv", "--learning-rate"], "give --set training.learning_rate=VALUE"),
        (["evaluate", "s", "m", "--epochs", "3"], "Unknown option: --epochs."),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_bad_score_is_named_with_file_row_and_column(capsys, shop: Path):
    shop.write_text(shop.read_text(encoding="utf-8").replace("kind 1,1", "kind 1,good", 1), encoding="utf-8")
    code, _, err = call(capsys, "inspect", shop, "--query", "q", "--score", "stars")
    assert code == 2
    assert f"{shop}, row 1 after the header, column 'stars': the score is 'good', not a number" in err


def test_a_file_that_unpacks_to_more_than_max_unpacked_is_refused_in_one_line(
    capsys, tmp_path: Path, tiny_model_path: Path
):
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(b"query,title,score\n" + b"a,b,1\n" * 400_000))
    for verb in (["inspect", path], ["run", path], ["index", tiny_model_path, path, tmp_path / "out"]):
        code, _, err = call(capsys, *verb, "--max-unpacked", "1")
        assert code == 2
        assert f"{path}: unpacks to more than 1 MiB" in err
        assert err.count("\n") == 1


def test_a_split_that_shares_documents_warns_on_standard_error(capsys, tmp_path: Path):
    path = tmp_path / "dense.csv"
    rows = [f"drill {n},saw {(n * 7 + m * m * 5 + m) % 40},{1 + m % 3}" for n in range(60) for m in range(5)]
    path.write_text("query,title,score\n" + "\n".join(rows) + "\n", encoding="utf-8")
    code, out, err = call(capsys, "split", path, tmp_path / "split", "--json")
    assert code == 0
    assert json.loads(out)["method"] == "queries-only"
    assert err.strip().startswith("WARNING: sides share documents, and train holds")
    code, out, _ = call(capsys, "split", path, tmp_path / "split", "--method", "queries-only", "--overwrite")
    assert "sides share no query; they do share documents" in " ".join(out.split())


def test_a_missing_column_is_named_with_the_option_to_give(capsys, shop: Path):
    code, _, err = call(capsys, "inspect", shop, "--query", "term", "--score", "stars")
    assert code == 2
    assert "no column 'term'" in err
    assert "--query" in err


def test_inspect_shows_histogram_dip_and_thresholds(capsys, shop: Path, tiny_model_path: Path):
    code, out, _ = call(capsys, "inspect", shop, "--query", "q", "--score", "stars", "--model", tiny_model_path)
    assert code == 0
    assert "the dip lies at 2.00" in out
    assert "50.0%" in out
    assert max(map(len, out.splitlines())) <= 80


def test_inspect_writes_a_picture_and_json(capsys, shop: Path, tiny_model_path: Path, tmp_path: Path):
    picture = tmp_path / "scores.png"
    options = ["--query", "q", "--score", "stars", "--model", tiny_model_path, "--picture", picture, "--json"]
    code, out, _ = call(capsys, "inspect", shop, *options)
    assert code == 0
    assert json.loads(out)["records"] == 80
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "scores.svg").read_text(encoding="utf-8").startswith("<svg")


def test_split_train_and_evaluate_follow_one_another(capsys, shop: Path, tiny_model_path: Path, tmp_path: Path):
    split, model = tmp_path / "split", tmp_path / "model"
    code, out, _ = call(capsys, "split", shop, split, "--query", "q", "--document", "title", "--score", "stars")
    assert code == 0
    assert "components" in out
    fast = ["--set", "epochs=1", "--set", "batch_size=8"]
    code, out, _ = call(
        capsys, "train", split, model, "--base", tiny_model_path, "--matryoshka", *fast, "--query-prompt", "find: "
    )
    assert code == 0
    assert "dev_recall@10" in out
    assert find_model(str(model)).prompts == {"query": "find: ", "document": ""}
    code, out, _ = call(capsys, "evaluate", split, f"base={tiny_model_path}", model, "--json")
    assert code == 0
    results = json.loads(out)["results"]
    # A model's own size, its half, quarter and eighth.
    assert {(row["variant"], row["dim"]) for row in results} == {
        *((name, dim) for name in ("base", "base+bm25", "model", "model+bm25") for dim in (32, 16, 8, 4)),
        ("bm25", 0),
        ("bm25-stemmed", 0),
    }
    out = call(capsys, "evaluate", split, model, "--dims", "32,8", "--precisions", "float32,int8", "--rotate")[1]
    assert "model against" not in out
    assert "bm25-stemmed" in out
    assert "int8, rotated" in out
    picture = tmp_path / "front.png"
    options = [
        "--split",
        split,
        "--keep",
        "0.8",
        "--out",
        tmp_path / "small",
        "--picture",
        picture,
    ]
    code, out, _ = call(capsys, "shrink", model, *options)
    assert code == 0
    assert "bytes a vector" in out
    assert (tmp_path / "small" / "modules.json").is_file()
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, _, err = call(capsys, "shrink", tiny_model_path)
    assert code == 2
    assert "--split" in err


def test_training_a_table_says_what_the_base_model_itself_has(
    capsys, shop: Path, tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from nestling.training.dev import DevEvaluator

    def say(self: DevEvaluator, model, output_path: object = None, epoch: float = -1, **_: object) -> dict[str, float]:
        value = 0.6 if type(model[0]).__name__ == "Transformer" else 0.4 + 0.1 * (epoch == 1)
        return {"dev_recall@10": value, "dev_mrr@10": value}

    monkeypatch.setattr(DevEvaluator, "__call__", say)
    split, model = tmp_path / "split", tmp_path / "model"
    assert call(capsys, "split", shop, split, "--query", "q", "--score", "stars")[0] == 0
    fast = ["--recipe", "static", "--set", "epochs=1", "--set", "batch_size=8"]
    code, out, _ = call(capsys, "train", split, model, "--base", tiny_model_path, *fast)
    assert code == 0
    assert "dev_recall@10  0.4000 -> 0.4000 (base model 0.6000)" in out
    assert "REGRESSION: the trained model retrieves worse on dev than its base" in " ".join(out.split())


def test_nothing_that_exists_is_replaced_unasked(capsys, shop: Path, tmp_path: Path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work", encoding="utf-8")
    for options in ([], ["--overwrite"]):
        code, _, err = call(capsys, "split", shop, mine, "--query", "q", "--score", "stars", *options)
        assert code == 2
        assert "exists" in err
    assert (mine / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_run_ends_with_both_tables_and_the_paths_and_as_json_prints_the_results_alone(
    capsys, shop: Path, small: list[str], tmp_path: Path
):
    arguments = ["run", shop, "--query", "q", "--score", "stars", "--runs", tmp_path / "runs", *small]
    code, out, err = call(capsys, *arguments)
    assert code == 0, err
    assert "Models at full size" in out
    assert "recall@10 by embedding size" in out
    assert out.splitlines()[-1] == f"run folder  {tmp_path / 'runs' / 'shop'}"
    assert "\x1b[" not in out
    code, out, _ = call(capsys, *arguments, "--json")
    assert code == 0
    assert {row["variant"] for row in json.loads(out)["results"]} == {
        "pretrained",
        "pretrained+bm25",
        "mnrl",
        "mnrl+bm25",
        "bm25",
        "bm25-stemmed",
    }


def test_escape_sequences_in_a_name_do_not_reach_the_terminal(capsys):
    code, _, err = call(capsys, "inspect", "\x1b[31mred.csv")
    assert code == 2
    assert "\x1b" not in err


def test_a_killed_run_resumes_from_its_checkpoint_and_ends_on_ctrl_c_in_a_line(
    capsys, shop: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = ["run", str(shop), "--query", "q", "--score", "stars", "--runs", str(tmp_path), *small]
    arguments += ["--set", "training.epochs=400", "--set", "training.checkpoint_seconds=0.2"]
    log = tmp_path / "log.txt"
    killed = subprocess.Popen([*NESTLING, *arguments], stderr=log.open("w"), text=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "shop" / "training" / "mnrl" / "finetune").glob("checkpoint-*/trainer_state.json")):
        assert killed.poll() is None, log.read_text(encoding="utf-8")
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    note = TerminalObserver.note

    def interrupted(self: TerminalObserver, text: str) -> None:
        note(self, text)
        if "going on from its checkpoint at step" in text:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TerminalObserver, "note", interrupted)
    code, _, err = call(capsys, *arguments)
    assert code == 130
    assert "going on from its checkpoint at step" in " ".join(err.split())
    assert "interrupted; the same command goes on from here" in err
    assert "Traceback" not in err


def test_two_processes_train_one_model_and_one_of_them_speaks(
    capsys, shop: Path, tiny_model_path: Path, tmp_path: Path
):
    split, model = tmp_path / "split", tmp_path / "model"
    assert call(capsys, "split", shop, split, "--query", "q", "--score", "stars")[0] == 0
    options = ["train", str(split), str(model), "--base", str(tiny_model_path), "--recipe", "graded", "--dims", "32,8"]
    settings = ["--set", "epochs=1", "--set", "batch_size=8", "--set", "checkpoint_seconds=0"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # As torchrun and accelerate launch start them, without a launcher that imports torch first.
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [*NESTLING, *options, *settings],
            env={**shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    written = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], written
    assert [out.count("dev_recall@10") for out, _ in written] == [1, 0]
    assert (model / "modules.json").is_file()


def test_importing_the_package_loads_neither_torch_nor_polars():
    code = "import sys, nestling; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'polars')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_does_not_load_torch():
    code = "import sys, nestling.cli.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

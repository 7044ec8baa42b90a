"""A missing package is one line with what to install, before any long work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nestling.cli.app import main

CATALOGUE = "title,brand\n" + "".join(f"tool number {n},Acme\n" for n in range(8))
JUDGED = "query,document,score\n" + "".join(f"q{n % 30},tool {n},{n % 3 + 1}\n" for n in range(300))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("faiss", "ann", ["index", "MODEL", "shop.csv", "out", "--exact-up-to", "5", "--shortlist", "16:int8"]),
        ("faiss", "ann", ["index", "MODEL", "shop.csv", "out", "--exact-up-to", "5"]),
        ("pyarrow", "study", ["encode", "MODEL", "shop.csv", "out"]),
        ("ray", "ray", ["encode", "MODEL", "shop.csv", "out", "--engine", "ray"]),
        ("onnx", "export", ["export", "MODEL", "out"]),
        ("onnxruntime", "runtime", ["export", "MODEL", "out"]),
        ("nncf", "export", ["export", "MODEL", "out", "--precision", "int8"]),
        ("openvino", "openvino", ["export", "MODEL", "out", "--format", "openvino"]),
        ("openvino", "openvino", ["index", "MODEL", "shop.csv", "out", "--engine", "openvino-fp32"]),
        ("openvino", "openvino", ["run", "judged.csv", "--set", "evaluation.engine=openvino-fp32"]),
        ("vl_convert", "study", ["run", "judged.csv"]),
        ("altair", "study", ["tune", "judged.csv"]),
        ("optuna", "tune", ["tune", "judged.csv"]),
        ("jinja2", "study", ["curve", "judged.csv"]),
        ("uvicorn", "serve", ["serve", "out"]),
    ],
)
def test_a_missing_package_is_told_before_anything_is_encoded_or_trained(
    tmp_path: Path, tiny_model_path: Path, monkeypatch, capsys, module: str, extra: str, arguments: list[str]
):
    (tmp_path / "shop.csv").write_text(CATALOGUE)
    (tmp_path / "judged.csv").write_text(JUDGED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    given = [str(tiny_model_path) if one == "MODEL" else one for one in arguments]
    if arguments[0] in ("run", "tune", "curve"):
        given += ["--set", f"model={tiny_model_path}"]
    line = refused(given, capsys)
    assert f"needs {module}: pip install 'nestling[{extra}]'" in line
    assert not [*tmp_path.rglob("*.npy"), *tmp_path.rglob("*.parquet"), *tmp_path.rglob("*.safetensors")]


def test_what_no_verb_looks_for_beforehand_is_still_a_line(tmp_path: Path):
    script = (
        "import sys; sys.modules['polars'] = None; from nestling.cli.app import main; main(['index', 'm', 'c', 'o'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (2, "nestling: this needs polars: pip install 'nestling[study]'\n")

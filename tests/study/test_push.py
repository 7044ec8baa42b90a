"""A push: what is sent, byte for byte, against a hub that speaks as much of the protocol as the client needs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fixtures.study import make_study
from nestling.cli import export as cli_publishing
from nestling.config.run_folder import RunFolder
from nestling.errors import InputError
from nestling.evaluation.cells import Cell
from nestling.report.model_card import write_cards
from nestling.report.page_data import load_page_data
from nestling.study.push import plan, send

TOKEN = "hf_of_this_test"
REPO = "shop/search-model"
FIGURES = {name: {Cell(32): [1.0] * found + [0.0] * (8 - found)} for name, found in (("pretrained", 4), ("mnrl", 6))}


def push(run: Path, variant: str, repo_id: str, *, force: bool = False, **options: Any) -> str:
    return send(plan(run, variant, repo_id, force=force), **options)


@dataclass
class Hub:
    """What a hub was told.

    Attributes:
        files: path -> bytes, as the commits have them.
        refuse: the end of a request's path -> the status to answer with.
    """

    url: str = ""
    exists: bool = False
    private: bool = False
    requests: list[str] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    refuse: dict[str, int] = field(default_factory=dict)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return status and JSON."""
        for end, status in self.refuse.items():
            if path.endswith(end):
                return status, {"error": "as the test\nwants"}
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            known, self.exists = self.exists, True
            self.private = self.private if known else self.created[-1].get("visibility") == "private"
            return (409 if known else 200), {"url": f"{self.url}/{REPO}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == f"/api/models/{REPO}":
            return (200, {"id": REPO, "private": self.private}) if self.exists else (404, {"error": "not found"})
        if f"/api/models/{REPO}/branch/" in path:
            self.branches.append(path.rpartition("/")[2])
            return 200, {}
        if f"/api/models/{REPO}/preupload/" in path:
            asked = json.loads(body)["files"]
            modes = {one["path"]: "lfs" if one["path"].endswith(".safetensors") else "regular" for one in asked}
            return 200, {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]}
        if path == f"/{REPO}.git/info/lfs/objects/batch":
            return 200, {
                "transfer": "basic",
                "objects": [
                    {**one, "actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}}
                    for one in json.loads(body)["objects"]
                ],
            }
        if method == "PUT":
            assert hashlib.sha256(body).hexdigest() == path.rpartition("/")[2]
            self.objects[path.rpartition("/")[2]] = body
            return 200, {}
        if f"/api/models/{REPO}/commit/" in path:
            self._commit(path.rpartition("/")[2], [json.loads(line) for line in body.splitlines()])
            return 200, {"commitUrl": f"{self.url}/{REPO}/commit/abc", "commitOid": "abc"}
        return 404, {"error": f"unknown: {method} {path}"}

    def _commit(self, revision: str, lines: list[dict[str, Any]]) -> None:
        self.commits.append({"revision": revision, **lines[0]["value"]})
        for line in lines[1:]:
            value = line["value"]
            content = base64.b64decode(value["content"]) if line["key"] == "file" else self.objects[value["oid"]]
            self.files[value["path"]] = content


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            found.requests.append(f"{self.command} {path}")
            status, value = found.answer(self.command, path, body)
            # Objects go to a storage, which is signed for by its address.
            if self.command != "PUT" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                status, value = 401, {"error": "Invalid credentials"}
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if status == 404 and not found.exists:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = _handle  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    online(monkeypatch)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield found
    server.shutdown()
    server.server_close()


def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client use the network; it read the environment when it was imported. The fake hub has no Xet."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def run(tmp_path: Path, tiny_model_path: Path) -> RunFolder:
    return make_run(tmp_path / "run", tiny_model_path)


def make_run(path: Path, model: Path, *, dev: tuple[float, float] = (0.5, 0.6)) -> RunFolder:
    folder = make_study(path, FIGURES, variants=["pretrained", "mnrl"], dev={"mnrl": dev}, pages=False)
    shutil.copytree(model, folder.model("mnrl"))
    write_cards(folder, load_page_data(folder))
    return folder


def on_disk(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_byte_of_the_model_arrives_in_one_commit(hub: Hub, run: RunFolder):
    url = push(run.path, "mnrl", REPO, endpoint=hub.url)
    assert url == f"{hub.url}/{REPO}/commit/abc"
    assert hub.files == on_disk(run.model("mnrl"))
    assert {"README.md", "model.safetensors", "modules.json", "tokenizer.json"} <= set(hub.files)
    assert [(commit["revision"], commit["summary"]) for commit in hub.commits] == [
        ("main", "Upload mnrl, trained with Nestling")
    ]
    assert hub.created[0].get("visibility") is None
    assert 'model = SentenceTransformer("shop/search-model")' in hub.files["README.md"].decode()


def test_work_files_hidden_files_and_other_formats_stay_behind(hub: Hub, run: RunFolder):
    model = run.model("mnrl")
    (model / "checkpoint-10").mkdir()
    for name in (
        *("optimizer.pt", "training_args.bin", "trainer_state.json", ".model.1.part.safetensors", "notes.md", "run.py"),
        *("checkpoint-10/model.safetensors", "1_Pooling/optimizer.pt", "1_Pooling/.secret.json"),
    ):
        (model / name).write_bytes(b"x")
    push(run.path, "mnrl", REPO, endpoint=hub.url)
    modules = [one["path"] for one in json.loads((model / "modules.json").read_text()) if one["path"]]
    of_model = {f"{name}/config.json" for name in modules} | {path.name for path in model.iterdir() if path.is_file()}
    left = {
        "optimizer.pt",
        "training_args.bin",
        "trainer_state.json",
        ".model.1.part.safetensors",
        "notes.md",
        "run.py",
    }
    assert set(hub.files) == of_model - left


def test_a_repository_branch_and_message_of_choice(hub: Hub, run: RunFolder):
    hub.exists = True
    push(run.path, "mnrl", REPO, endpoint=f"{hub.url}/", revision="v2", message="second")
    assert hub.branches == ["v2"]
    assert [(commit["revision"], commit["summary"]) for commit in hub.commits] == [("v2", "second")]


def test_a_private_model_never_goes_to_a_public_repository(hub: Hub, run: RunFolder):
    push(run.path, "mnrl", REPO, endpoint=hub.url, private=True)
    assert hub.created[0]["visibility"] == "private"
    assert len(hub.commits) == 1
    hub.private = False
    with pytest.raises(InputError, match="exists and is public; make it private there first"):
        push(run.path, "mnrl", REPO, endpoint=hub.url, private=True)
    assert len(hub.commits) == 1


def test_without_a_card_one_is_made_and_an_edited_one_is_kept(hub: Hub, run: RunFolder):
    card = run.model("mnrl") / "README.md"
    card.unlink()
    push(run.path, "mnrl", REPO, endpoint=hub.url)
    assert card.read_bytes() == hub.files["README.md"]
    assert "model-index:" in card.read_text()
    card.write_text("---\nlicense: mit\n---\n\nmine\n")
    push(run.path, "mnrl", REPO, endpoint=hub.url)
    assert hub.files["README.md"] == b"---\nlicense: mit\n---\n\nmine\n"


def test_a_plan_writes_nothing_and_needs_no_network(run: RunFolder):
    before = on_disk(run.path)
    upload = plan(run.path, "mnrl", REPO)
    assert on_disk(run.path) == before
    sizes = {name: len(content) for name, content in before.items() if name.startswith("models/mnrl/")}
    sizes["models/mnrl/README.md"] += len(REPO) - len(".")
    assert {f"models/mnrl/{name}": size for name, size in upload.sizes.items()} == sizes


def test_a_regression_is_refused_unless_forced(hub: Hub, tmp_path: Path, tiny_model_path: Path):
    folder = make_run(tmp_path / "worse", tiny_model_path, dev=(0.6, 0.5))
    with pytest.raises(InputError, match=r"is a REGRESSION: on dev it ended below its base; .* give --force"):
        push(folder.path, "mnrl", REPO, endpoint=hub.url)
    assert hub.requests == []
    push(folder.path, "mnrl", REPO, endpoint=hub.url, force=True)
    assert b"REGRESSION" in hub.files["README.md"]


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("pretrained", "'pretrained' was not trained, so it is its base as it was; trained are: mnrl"),
        ("other", "no variant 'other'; trained are: mnrl"),
        ("../models/mnrl", "no variant '../models/mnrl'"),
    ],
)
def test_only_what_the_run_trained_can_be_pushed(run: RunFolder, variant: str, said: str):
    with pytest.raises(InputError, match=re.escape(said)):
        plan(run.path, variant, REPO)


@pytest.mark.parametrize(
    "repo_id", ["", "name", "a/b/c", "a/b c", "../b", "a/--b", "a/b\n", "ä/b", 'a/b"', "https://x/a"]
)
def test_an_invalid_repository_is_refused(run: RunFolder, repo_id: str):
    with pytest.raises(InputError, match="is no valid id of a repository; give OWNER/NAME"):
        plan(run.path, "mnrl", repo_id)


def test_an_unfinished_run_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="holds no finished run"):
        plan(tmp_path, "mnrl", REPO)


def test_a_model_that_was_trained_again_since_is_refused(run: RunFolder):
    work = run.training("mnrl")
    work.mkdir(parents=True)
    trained = json.loads(run.results_json.read_text())["training"]["mnrl"]
    (work / "summary.json").write_text(json.dumps(trained))
    assert plan(run.path, "mnrl", REPO).variant == "mnrl"
    (work / "summary.json").write_text(json.dumps({**trained, "steps": 3}))
    with pytest.raises(InputError, match="mnrl was trained again after the run's results were written"):
        plan(run.path, "mnrl", REPO)


def test_a_model_that_is_not_whole_is_refused(run: RunFolder):
    model = run.model("mnrl")
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        plan(run.path, "mnrl", REPO)
    weights.unlink()
    with pytest.raises(InputError, match=r"holds no \.safetensors weights"):
        plan(run.path, "mnrl", REPO)
    weights.write_bytes(content)
    shutil.rmtree(model / "1_Pooling")
    with pytest.raises(InputError, match="its module '1_Pooling' is not there"):
        plan(run.path, "mnrl", REPO)
    (model / "modules.json").write_text("[")
    with pytest.raises(InputError, match=r"modules\.json cannot be read"):
        plan(run.path, "mnrl", REPO)
    (model / "modules.json").write_text('[{"path": "../.."}]')
    with pytest.raises(InputError, match=r"its module '\.\./\.\.' is not there"):
        plan(run.path, "mnrl", REPO)
    shutil.rmtree(model)
    with pytest.raises(InputError, match="the model is not whole"):
        plan(run.path, "mnrl", REPO)


@pytest.mark.parametrize("name", ["extra.json", "1_Pooling/extra.json", "README.md"])
def test_a_link_is_not_followed(run: RunFolder, tmp_path: Path, name: str):
    (tmp_path / "secret.json").write_text("secret")
    path = run.model("mnrl") / name
    path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / "secret.json")
    with pytest.raises(InputError, match="is a link"):
        plan(run.path, "mnrl", REPO)


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        ("/create", 401, r"answers 401 .*: the token is not accepted; log in again with hf auth login"),
        ("/create", 403, r"answers 403 .*: the token may not write to shop/search-model"),
        ("/main", 403, r"answers 403 .*: the token may not write to shop/search-model"),
        ("/main", 404, r"answers 404 .*: there is no shop/search-model, or the token may not see it"),
        ("/batch", 403, r"answers 403 .*: the token may not write to shop/search-model"),
        ("/v3", 400, r"answers 400 .*as the test wants.*: look at what it says"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(hub: Hub, run: RunFolder, end: str, status: int, said: str):
    hub.refuse = {end: status}
    before = on_disk(run.path)
    with pytest.raises(InputError, match=said) as caught:
        push(run.path, "mnrl", REPO, endpoint=hub.url, revision="v3" if end == "/v3" else None)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert hub.commits == []
    assert on_disk(run.path) == before


def test_a_token_that_may_not_make_repositories_can_push_to_one_that_exists(hub: Hub, run: RunFolder):
    hub.exists, hub.refuse = True, {"/create": 403}
    push(run.path, "mnrl", REPO, endpoint=hub.url)
    assert hub.files == on_disk(run.model("mnrl"))


def test_a_wrong_token_is_told(hub: Hub, run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(InputError, match=r"answers 401 .*the token is not accepted"):
        push(run.path, "mnrl", REPO, endpoint=hub.url)


def test_no_token_is_told_before_anything_is_sent(hub: Hub, run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(run.path / "no-token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(run.path / "no-tokens"))
    with pytest.raises(InputError, match="no token for the hub; log in with hf auth login, or set HF_TOKEN"):
        push(run.path, "mnrl", REPO, endpoint=hub.url)
    assert hub.requests == []


def test_a_hub_that_cannot_be_reached_is_told(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    online(monkeypatch)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match=r"127\.0\.0\.1:\d+ cannot be reached .*; look at the network"):
            push(run.path, "mnrl", REPO, endpoint=f"http://127.0.0.1:{closed.getsockname()[1]}")


def test_offline_mode_is_told_with_its_name(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set, so nothing is sent; unset it"):
        push(run.path, "mnrl", REPO)


def test_an_endpoint_that_is_no_url_is_refused(run: RunFolder):
    with pytest.raises(InputError, match=r"endpoint 'hub\.shop' is no URL"):
        push(run.path, "mnrl", REPO, endpoint="hub.shop")


def test_the_verb_lists_files_and_sends_nothing_on_a_dry_run(
    hub: Hub, run: RunFolder, capsys: pytest.CaptureFixture[str]
):
    cli_publishing.push(Path("run"), "mnrl", REPO, runs=run.path.parent, dry_run=True, endpoint=hub.url)
    told = capsys.readouterr().out
    assert "Would be sent to shop/search-model" in told
    assert "1_Pooling/config.json" in told
    assert "nothing was sent" in told
    assert hub.requests == []


def test_the_verb_prints_one_json_object(hub: Hub, run: RunFolder, capsys: pytest.CaptureFixture[str]):
    cli_publishing.push(run.path, "mnrl", REPO, endpoint=hub.url, as_json=True)
    told = json.loads(capsys.readouterr().out)
    sizes = {name: len(content) for name, content in hub.files.items()}
    assert told == {
        **{"repository": REPO, "files": sizes, "bytes": sum(sizes.values())},
        "commit": f"{hub.url}/{REPO}/commit/abc",
    }


def test_the_verb_refuses_a_run_that_is_not_there(tmp_path: Path):
    with pytest.raises(InputError, match="there is no run other, here or in"):
        cli_publishing.push(Path("other"), "mnrl", REPO, runs=tmp_path)

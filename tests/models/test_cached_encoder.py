from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.config.names import Kind
from nestling.models.cached_encoder import CachedEncoder, texts_fingerprint
from nestling.models.torch_encoder import TorchEncoder, embed

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TEXTS = ["red drill", "sink", "red drill", "a white light"]
# What a process needs to fill a cache without loading torch.
STAND_IN = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from nestling.config.names import Kind
from nestling.models.cached_encoder import CachedEncoder
folder, log = Path(sys.argv[1]), Path(sys.argv[2])
class StandIn:
    dim, fingerprint, codec, identity = 3, "m", None, {"model": "m"}
    def encode(self, texts, *, kind):
        with log.open("a") as file:
            file.write("encoded\\n")
        time.sleep(0.5)
        return np.arange(3 * len(texts), dtype=np.float32).reshape(-1, 3)
"""
ASK = 'found = CachedEncoder(StandIn(), folder).encode(["a", "b"], kind="query")\n'


class StandIn:
    """Lists what it encodes. A row holds its text's length, its place and 1."""

    dim, fingerprint, codec = 3, "m", None

    def __init__(self) -> None:
        self.identity: dict[str, Any] = {"model": "m"}
        self.encodings: list[list[str]] = []

    def encode(self, texts: Sequence[str], *, kind: str) -> np.ndarray:
        self.encodings.append(list(texts))
        return np.array([[len(text), place, 1] for place, text in enumerate(texts)], dtype=np.float32)


@pytest.fixture
def model() -> StandIn:
    return StandIn()


def start(script: str, folder: Path, log: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STAND_IN + script, str(folder), str(log)], stdout=subprocess.PIPE, text=True
    )


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.npy") if not path.name.startswith("."))


def leftovers(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*"))


def test_rows_are_those_of_embed_and_cannot_be_written_to(tiny_model: SentenceTransformer, tmp_path: Path) -> None:
    for _ in range(2):
        found = CachedEncoder(TorchEncoder(tiny_model, "m"), tmp_path).encode(TEXTS)
        np.testing.assert_array_equal(found, embed(tiny_model, TEXTS, kind="document"))
        assert isinstance(found, np.memmap)
        assert not found.flags.writeable


def test_the_second_call_encodes_nothing(model: StandIn, tmp_path: Path) -> None:
    first, second = (CachedEncoder(model, tmp_path).encode(TEXTS, kind="query") for _ in range(2))
    assert model.encodings == [TEXTS]
    np.testing.assert_array_equal(first, second)


def test_numpy_reads_an_entry_by_itself(model: StandIn, tmp_path: Path) -> None:
    CachedEncoder(model, tmp_path).encode(TEXTS, kind="query")
    assert np.load(entries(tmp_path)[0]).tolist() == [[9, 0, 1], [4, 1, 1], [9, 2, 1], [13, 3, 1]]


def test_without_a_folder_embeddings_are_kept_in_memory(model: StandIn) -> None:
    encoder = CachedEncoder(model, None)
    first, second, _ = (encoder.encode(TEXTS, kind=kind) for kind in ("query", "query", "document"))
    assert first is second
    assert not first.flags.writeable
    assert model.encodings == [TEXTS, TEXTS]


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": {"query": "find: "}},
        {"max_seq_length": 32},
        {"default_prompt_name": "query"},
        {"fingerprint": "n"},
        {"_engine": SimpleNamespace(key="torch-bf16")},
    ],
)
def test_what_a_model_reads_of_a_text_is_part_of_the_key(
    tiny_model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    encoder = TorchEncoder(tiny_model, "m")
    before = CachedEncoder(encoder, None).key(TEXTS, "query")
    assert CachedEncoder(TorchEncoder(tiny_model, "m"), None).key(TEXTS, "query") == before
    for name, value in change.items():
        monkeypatch.setattr(encoder if name in vars(encoder) else tiny_model, name, value)
    assert CachedEncoder(encoder, None).key(TEXTS, "query") != before


@pytest.mark.parametrize(("texts", "kind"), [(TEXTS, "document"), (TEXTS[::-1], "query")])
def test_another_kind_or_order_is_encoded_anew(model: StandIn, tmp_path: Path, texts: list[str], kind: Kind) -> None:
    encoder = CachedEncoder(model, tmp_path)
    encoder.encode(TEXTS, kind="query")
    found = encoder.encode(texts, kind=kind)
    assert len(model.encodings) == 2
    assert found[:, 0].tolist() == [len(text) for text in texts]


@given(st.lists(st.text(max_size=5), max_size=5), st.lists(st.text(max_size=5), max_size=5))
def test_fingerprints_of_texts_are_equal_where_the_lists_are(left: list[str], right: list[str]) -> None:
    assert (texts_fingerprint(left) == texts_fingerprint(right)) == (left == right)


def test_texts_that_read_alike_when_joined_have_fingerprints_of_their_own() -> None:
    lists = (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], ["", "abc"], ["ab\0c"], ["\ud800"])
    assert len({texts_fingerprint(texts) for texts in lists}) == len(lists)


def test_two_processes_at_once_encode_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    both = [start(ASK + "print(found.tolist())", tmp_path / "cache", log) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].strip() for process in both]
    assert said == ["[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]"] * 2
    assert log.read_text() == "encoded\n"


DIE_WRITING = """
def write(file, array, **settings):
    file.write(b"half of it")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
np.lib.format.write_array = write
"""


def test_a_process_killed_while_writing_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    folder, log = tmp_path / "cache", tmp_path / "log"
    dying = start(DIE_WRITING + ASK, folder, log)
    assert dying.wait(timeout=60) == -signal.SIGKILL
    assert not entries(folder)
    assert len(leftovers(folder)) == 1
    after = start(ASK + "print(found.tolist())", folder, log)
    assert after.communicate(timeout=60)[0].strip() == "[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]"
    assert log.read_text() == "encoded\nencoded\n"
    assert not leftovers(folder)


def truncated(data: bytes) -> bytes:
    return data[:-7]


def cut_to_the_header(data: bytes) -> bytes:
    return data[:128]


def emptied(data: bytes) -> bytes:
    return b""


def filled_with_zeros(data: bytes) -> bytes:
    return bytes(len(data))


def bit_flipped(data: bytes) -> bytes:
    return data[:140] + bytes([data[140] ^ 1]) + data[141:]


def lengthened(data: bytes) -> bytes:
    return data + b"\0\0\0\0"


@pytest.mark.parametrize("damage", [truncated, cut_to_the_header, emptied, filled_with_zeros, bit_flipped, lengthened])
def test_a_damaged_entry_is_noted_and_made_again(
    model: StandIn,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
) -> None:
    CachedEncoder(model, tmp_path).encode(TEXTS, kind="query")
    entry = entries(tmp_path)[0]
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    found = CachedEncoder(model, tmp_path).encode(TEXTS, kind="query")
    assert found[:, 0].tolist() == [9, 4, 9, 13]
    assert len(model.encodings) == 2
    assert "encoding again" in caplog.text
    assert entry.read_bytes() == whole


def test_an_entry_of_another_number_of_rows_is_made_again(model: StandIn, tmp_path: Path) -> None:
    CachedEncoder(model, tmp_path).encode(TEXTS, kind="query")
    CachedEncoder(model, tmp_path).encode(TEXTS[:2], kind="query")
    long, short = sorted(entries(tmp_path), key=lambda path: -path.stat().st_size)
    long.write_bytes(short.read_bytes())
    assert CachedEncoder(model, tmp_path).encode(TEXTS, kind="query").shape == (4, 3)
    assert len(model.encodings) == 3


@pytest.fixture
def nobody_elses_folder() -> Iterator[Path]:
    """Give a folder that this process may read and not write to; root gives up its rights for the while."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        user = os.geteuid()
        yield folder
        os.seteuid(user)
        folder.chmod(0o755)


def forbid_writing(folder: Path) -> None:
    folder.chmod(0o555)
    for path in folder.iterdir():
        path.chmod(0o444)
    if os.geteuid() == 0:
        os.seteuid(65534)


def test_a_read_only_folder_gives_what_it_has(model: StandIn, nobody_elses_folder: Path) -> None:
    CachedEncoder(model, nobody_elses_folder).encode(TEXTS, kind="query")
    forbid_writing(nobody_elses_folder)
    assert CachedEncoder(model, nobody_elses_folder).encode(TEXTS, kind="query")[:, 0].tolist() == [9, 4, 9, 13]
    assert len(model.encodings) == 1


def test_a_read_only_folder_is_warned_of_and_the_embeddings_returned(
    model: StandIn, nobody_elses_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forbid_writing(nobody_elses_folder)
    found = CachedEncoder(model, nobody_elses_folder / "deeper").encode(TEXTS, kind="query")
    assert found[:, 0].tolist() == [9, 4, 9, 13]
    assert not found.flags.writeable
    assert "not cached" in caplog.text


def test_a_disk_that_takes_no_more_is_warned_of_and_the_embeddings_returned(
    model: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, before[1]))
    try:
        found = CachedEncoder(model, tmp_path).encode(TEXTS, kind="query")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found[:, 0].tolist() == [9, 4, 9, 13]
    assert "not cached" in caplog.text
    assert not entries(tmp_path)
    assert not leftovers(tmp_path)


def test_no_texts_give_no_rows_and_no_file(tiny_model: SentenceTransformer, tmp_path: Path) -> None:
    assert CachedEncoder(TorchEncoder(tiny_model, "m"), tmp_path).encode([]).shape == (0, 32)
    assert not list(tmp_path.iterdir())

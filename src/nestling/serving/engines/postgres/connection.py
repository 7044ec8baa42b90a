"""A connection to PostgreSQL that comes back when the server does, and says in one line what went wrong."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import psycopg

from nestling.errors import InputError, first_line
from nestling.progress import Observer

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each attempt to connect again."""
CONNECT_SECONDS = 10
# The server is shut down, has crashed or starts; two transactions got into each other's way.
PASSING = ("57P01", "57P02", "57P03", "40001", "40P01")
AGAIN = "what was written stays; give the same command again"


class Connection:
    """A connection; each piece of work is one transaction, done again when the connection was lost."""

    def __init__(self, dsn: str, *, waits: Sequence[float] = WAITS, observer: Observer | None = None) -> None:
        """Connect.

        Args:
            dsn: as libpq takes it; what it leaves out comes from PGHOST and the like.

        Raises:
            InputError: the server is not there or lets nobody in.
        """
        self._dsn, self.waits, self.observer = dsn, waits, observer or Observer()
        self._prepare: Callable[[psycopg.Connection[Any]], None] | None = None
        self._connection: psycopg.Connection[Any] | None = None
        try:
            self._connection = self._open()
        except psycopg.Error as error:
            raise InputError(_refused(error)) from None

    def prepared(self, prepare: Callable[[psycopg.Connection[Any]], None]) -> None:
        """Do something with this connection, and with each that takes its place."""
        self.run(prepare)
        self._prepare = prepare

    def run(self, work: Callable[[psycopg.Connection[Any]], Found]) -> Found:
        """Do `work` in a transaction. It may be done again, so it must come to the same when done twice.

        Raises:
            InputError: the server went away and did not come back, or refuses.
        """
        for wait in (*self.waits, None):
            try:
                if self._connection is None or self._connection.closed:
                    self._connection = self._open()
                    if self._prepare is not None:
                        with self._connection.transaction():
                            self._prepare(self._connection)
                with self._connection.transaction():
                    return work(self._connection)
            except psycopg.Error as error:
                if not _passes(error):
                    raise _explained(error) from None
                logger.warning("postgres: %s", first_line(error))
                self.close()
                if wait is None:
                    gone = f"PostgreSQL went away and did not come back in {len(self.waits)} attempts"
                    raise InputError(f"{gone} ({first_line(error)}); {AGAIN}") from None
                self.observer.note(f"PostgreSQL: {first_line(error)}; trying again in {wait:g} s")
                time.sleep(wait)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close it; the next piece of work opens another."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _open(self) -> psycopg.Connection[Any]:
        options: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, "client_encoding": "utf8"}
        found: psycopg.Connection[Any] = psycopg.connect(
            self._dsn, autocommit=True, application_name="nestling", **options
        )
        return found


def _passes(error: Exception) -> bool:
    """Whether the same work may go well on a new connection."""
    state = getattr(error, "sqlstate", None)
    if state is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return state in PASSING or state.startswith("08")


def _refused(error: Exception) -> str:
    """Say why there is no connection. The address may hold a password, so it is never quoted."""
    text = str(error)
    if not isinstance(error, psycopg.OperationalError):
        return "--dsn cannot be read; give it as postgresql://USER@HOST:PORT/DATABASE"
    # These come before there is a session, as text without a code.
    missing = "does not exist" in text
    for found, advice in (
        ("password authentication failed" in text, "give the right one in PGPASSWORD, ~/.pgpass or --dsn"),
        ("no password supplied" in text, "give it in PGPASSWORD, ~/.pgpass or --dsn"),
        ("no pg_hba.conf entry" in text, "have the server's pg_hba.conf let this user in from here"),
        (missing and "database " in text, "make it with createdb, or name another in --dsn"),
        (missing and "role " in text, "name a user that the server has in --dsn"),
    ):
        if found:
            return f"PostgreSQL: {_last(text)}; {advice}"
    return f"PostgreSQL cannot be reached ({_last(text)}); see that it runs, and that --dsn has its host and port"


def _explained(error: Exception) -> Exception:
    """Return what the user can mend as an InputError; anything else is a fault of the program and stays as it is."""
    errors = psycopg.errors
    text = first_line(error)
    if isinstance(error, errors.InsufficientPrivilege):
        return InputError(f"PostgreSQL: {text}; have its owner grant this user the right, or connect as another")
    if isinstance(error, errors.ReadOnlySqlTransaction):
        return InputError(f"PostgreSQL: {text}; connect to the server that takes writes, this one is a copy")
    if isinstance(error, errors.UndefinedTable | errors.UndefinedFunction | errors.UndefinedColumn):
        return InputError(f"PostgreSQL: {text}; what nestling postgres made was altered: drop it and load anew")
    if isinstance(error, psycopg.IntegrityError):
        return InputError(f"PostgreSQL: {text}; that rule is not Nestling's: drop it, or give another --table")
    if isinstance(error, psycopg.OperationalError):
        return InputError(f"PostgreSQL: {text}; mend that, {AGAIN}")
    return error


def _last(text: str) -> str:
    """Return the line that says why, without the address that libpq puts before it."""
    line = next((line for line in text.strip().splitlines() if "failed:" in line), text.strip().splitlines()[-1])
    return line.rpartition("failed:")[2].strip().removeprefix("FATAL:").strip()

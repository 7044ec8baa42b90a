"""A connection to PostgreSQL that comes back when the server does, and says in one line what went wrong."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import psycopg
from pgvector.psycopg import register_vector
from psycopg import errors
from psycopg.sql import Composed

from nestling.errors import InputError, first_line
from nestling.progress import Observer

Result = TypeVar("Result")
Psycopg = psycopg.Connection[Any]

WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each attempt to connect again."""
# The server is shut down, has crashed or starts; two transactions got into each other's way.
PASSING = ("57P01", "57P02", "57P03", "40001", "40P01")
AGAIN = "what was written stays; give the same command again"
REFUSALS = {
    "password authentication failed": "give the right one in PGPASSWORD, ~/.pgpass or --dsn",
    "no password supplied": "give it in PGPASSWORD, ~/.pgpass or --dsn",
    "no pg_hba.conf entry": "have the server's pg_hba.conf let this user in from here",
    "database .* does not exist": "make it with createdb, or name another in --dsn",
    "role .* does not exist": "name a user that the server has in --dsn",
}
"""Messages of the server before there is a session, as text without a code -> advice."""
MENDABLE = (
    (errors.InsufficientPrivilege, "have its owner grant this user the right, or connect as another"),
    (errors.ReadOnlySqlTransaction, "connect to the server that takes writes, this one is a copy"),
    (
        (errors.UndefinedTable, errors.UndefinedFunction, errors.UndefinedColumn),
        "what nestling postgres made was altered: drop it and load anew",
    ),
    (errors.InvalidParameterValue, "k or the shortlist is another number"),
    (errors.InvalidSchemaName, "CREATE SCHEMA it, or give another --table"),
    (errors.InvalidColumnReference, "give document_id a unique index of its own"),
    (errors.IntegrityError, "that rule is not Nestling's: drop it, or give another --table"),
    (errors.OperationalError, f"mend that, {AGAIN}"),
)
"""Errors that the user can mend -> advice; any other is a fault of the program."""


class Connection:
    """A connection; each piece of work is one transaction, done again when the connection was lost."""

    def __init__(self, dsn: str, *, observer: Observer | None = None) -> None:
        """Connect, or raise InputError where the server is not there or lets nobody in."""
        self._dsn, self.observer = dsn, observer or Observer()
        self.schema: str | None = None
        try:
            self._connection: Psycopg | None = self._open()
        except psycopg.Error as error:
            raise InputError(_refused(error)) from None

    def rows(self, statement: str | Composed, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        """Return the rows of one statement; see `run`."""

        def execute(connection: Psycopg) -> list[Any]:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

        return self.run(execute)

    def run(self, work: Callable[[Psycopg], Result]) -> Result:
        """Do `work` in a transaction, again after a lost connection; InputError where the server fails or refuses."""
        waits = iter(WAITS)
        while True:
            try:
                self._connection = self._connection or self._open()
                with self._connection.transaction():
                    return work(self._connection)
            except psycopg.Error as error:
                if not _passes(error):
                    advice = next((advice for kinds, advice in MENDABLE if isinstance(error, kinds)), None)
                    if advice is None:
                        raise
                    raise InputError(f"PostgreSQL: {first_line(error)}; {advice}") from None
                self.close()
                wait = next(waits, None)
                if wait is None:
                    gone = f"PostgreSQL went away and did not come back in {len(WAITS)} attempts"
                    raise InputError(f"{gone} ({first_line(error)}); {AGAIN}") from None
                self.observer.note(f"PostgreSQL: {first_line(error)}; trying again in {wait:g} s")
                time.sleep(wait)

    def close(self) -> None:
        """Close it; the next piece of work opens another."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _open(self) -> Psycopg:
        connection = psycopg.connect(
            self._dsn, autocommit=True, application_name="nestling", connect_timeout=10, client_encoding="utf8"
        )
        (self.schema,) = connection.execute("SELECT current_schema()").fetchone() or (None,)
        # Where pgvector is, its types must be in sight to be found.
        extension = connection.execute(
            "SELECT set_config('search_path', current_setting('search_path') || ', ' || quote_ident(nspname), false) "
            "FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'vector'"
        )
        if extension.rowcount:
            register_vector(connection)
        return connection


def _passes(error: psycopg.Error) -> bool:
    """Whether the same work may go well on a new connection."""
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return error.sqlstate in PASSING or error.sqlstate.startswith("08")


def _refused(error: psycopg.Error) -> str:
    """Say why there is no connection. The address may hold a password, so it is never quoted."""
    if not isinstance(error, psycopg.OperationalError):
        return "--dsn cannot be read; give it as postgresql://USER@HOST:PORT/DATABASE"
    # libpq puts the address before the reason.
    lines = str(error).strip().splitlines()
    line = next((line for line in lines if "failed:" in line), lines[-1])
    why = line.rpartition("failed:")[2].strip().removeprefix("FATAL:").strip()
    for pattern, advice in REFUSALS.items():
        if re.search(pattern, str(error)):
            return f"PostgreSQL: {why}; {advice}"
    return f"PostgreSQL cannot be reached ({why}); see that it runs, and that --dsn has its host and port"

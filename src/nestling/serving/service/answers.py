"""Answers as bytes, and refusals: one line of JSON, with no traceback and no path of the machine."""

from __future__ import annotations

import json
from typing import Any

from starlette.exceptions import HTTPException

TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "not_ready",
    504: "timeout",
}
LONGEST = 400


class RefusedError(HTTPException):
    """A request that is not answered; `reason` names the counter of refusals it goes into, if any."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        reason: str | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.reason, self.param, self.code = reason, param, code


class QueueFullError(RefusedError):
    """The queue has no room."""

    def __init__(self) -> None:
        message = "too many requests are waiting; try again"
        super().__init__(429, message, reason="queue_full", headers={"Retry-After": "1"})


def encoded(value: Any) -> bytes:
    """Return JSON in ASCII, since documents may hold lone surrogates, which UTF-8 cannot."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """Return a refusal's body in OpenAI's shape, its message brought to one short line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    kind = TYPES.get(status, "invalid_request_error")
    return encoded({"error": {"message": line[:LONGEST], "type": kind, "param": param, "code": code}})

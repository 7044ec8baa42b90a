"""The verb that serves indexes over HTTP. Parse, call, print."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from nestling.cli.options import EngineName, named_paths
from nestling.environment import needed
from nestling.errors import InputError, clean

if TYPE_CHECKING:
    from nestling.serving.index.index import Index
    from nestling.serving.service.served import Source

KEY = "NESTLING_API_KEY"


def serve(
    *index: Annotated[str, Parameter(help="Folders of indexes, as PATH or NAME=PATH; the first is the default.")],
    model: Annotated[
        tuple[str, ...],
        Parameter(help="What encodes queries, where an index's model has moved: one for all, or one each."),
    ] = (),
    host: Annotated[str, Parameter(help=f"Where to listen; beyond this machine only with {KEY} set.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="0 takes a free one.")] = 8000,
    split: Annotated[Path | None, Parameter(help="A folder that split wrote, whose test side marks results.")] = None,
    threshold: Annotated[float | None, Parameter(help="Relevant is above this score (2.5 on 1 to 3).")] = None,
    engine: EngineName = "torch-fp32",
    threads: Annotated[int | None, Parameter(help="Of an exported model.")] = None,
    max_batch: Annotated[int, Parameter(help="Texts that are encoded together.")] = 64,
    max_wait_ms: Annotated[float, Parameter(help="How long a text waits for others to be encoded with.")] = 2.0,
    queue: Annotated[int, Parameter(help="Texts that may wait; beyond it requests are told to come again.")] = 256,
    timeout: Annotated[float, Parameter(help="Seconds until an answer must be there.")] = 10.0,
) -> None:
    """Serve indexes over HTTP: /search, /v1/embeddings, and a page that shows sizes side by side.

    A new version of an index that nestling index writes meanwhile is taken up by itself, or at once on SIGHUP.
    """
    needed("nestling serve", "fastapi", "prometheus_client", "uvicorn")
    from nestling.serving.index.files import read_manifest
    from nestling.serving.index.index import Index
    from nestling.serving.service import listening
    from nestling.serving.service.app import create_app
    from nestling.serving.service.compare import read_judged
    from nestling.serving.service.limits import Limits
    from nestling.serving.service.served import Indexes, Source
    from nestling.serving.service.service import Service

    if threads is not None and threads < 1:
        raise InputError(f"--threads must be 1 or more, not {threads}")
    limits = Limits(max_batch=max_batch, max_wait=max_wait_ms / 1000, queue=queue, timeout=timeout)
    if not index:
        raise InputError("serve needs at least one index; give a folder that nestling index wrote")
    named = named_paths(index, "indexes")
    chosen = zip(named.items(), models(model, len(named)), strict=True)
    sources = [Source(name, Path(path), its_model) for (name, path), its_model in chosen]
    for source in sources:
        read_manifest(source.path)
    key = read_key()
    if key is None and not listening.is_loopback(host):
        raise InputError(
            f"--host {host} lets other machines in; set {KEY} to a secret that clients then send, or leave --host out"
        )

    def opened(source: Source) -> Index:
        return Index.open(source.path, model=source.model, engine=engine, threads=threads)

    judged = read_judged(split, threshold=threshold) if split else None
    service = Service(Indexes(sources, judged=judged, opener=opened), limits)
    app = create_app(service, hosts=listening.allowed_hosts(host), key=key)
    sock = listening.bind(host, port)
    _log_to_stderr()
    print(f"serving     {listening.url_of(host, sock)}", flush=True)
    listening.serve(service, app, sock)


def read_key() -> str | None:
    """Read the key that clients must send; white space around it, as a file's last line end, is left out."""
    given = os.environ.get(KEY, "")
    key = given.strip()
    if given and not (key and all("!" <= character <= "~" for character in key)):
        raise InputError(f"{KEY} must be of printable ASCII characters without spaces, since a header carries it")
    return key or None


def models(given: Sequence[str], n: int) -> list[str | None]:
    """Return the model of each of `n` indexes, of which none, one or one each is given; None for its own."""
    if len(given) not in (0, 1, n):
        raise InputError(f"--model is given {len(given)} times for {n} indexes; give it once for all, or once for each")
    return list(given) if len(given) == n else [given[0] if given else None] * n


def _log_to_stderr() -> None:
    class Line(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return "\n".join(clean(line) for line in super().format(record).splitlines())

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Line("%(asctime)s %(levelname)s %(message)s"))
    for name in ("nestling.serving", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False
    logging.getLogger("nestling.serving").setLevel(logging.INFO)

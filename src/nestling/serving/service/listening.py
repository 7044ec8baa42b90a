"""A server process: the socket, uvicorn around the app, new indexes taken up, and a clean end."""

from __future__ import annotations

import errno
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Sequence

import uvicorn
from starlette.types import ASGIApp

from nestling.errors import InputError
from nestling.serving.service.limits import CONNECTIONS, HEADERS, KEEP_ALIVE
from nestling.serving.service.service import Service

logger = logging.getLogger(__name__)

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
SECONDS_BETWEEN_LOOKS = 2.0


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def allowed_hosts(host: str) -> Sequence[str]:
    """Return the Host headers to accept: the local names on loopback, any elsewhere, where a key is required."""
    return [*LOCAL_HOSTS, _in_url(host)] if is_loopback(host) else ["*"]


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket, or raise InputError where there can be none; port 0 takes a free one."""
    if not 0 <= port <= 65_535:
        raise InputError(f"--port must be between 0 and 65535, not {port}")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host.strip("[]"), port))
        sock.listen()
        return sock
    except socket.gaierror:
        raise InputError(f"--host {host}: no such host; give an address of this machine, as in 127.0.0.1") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} of {host} is taken; give another with --port") from None
        raise InputError(f"cannot listen on {host} port {port}: {(error.strerror or str(error)).lower()}") from None


def url_of(host: str, sock: socket.socket) -> str:
    """Return the server's address for a browser."""
    return f"http://{_in_url(host)}:{sock.getsockname()[1]}/"


def _in_url(host: str) -> str:
    return f"[{host.strip('[]')}]" if ":" in host else host.lower()


def serve(service: Service, app: ASGIApp, sock: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what is under way; raise InputError where an index cannot be opened.

    A manifest is looked at every two seconds, and at once on SIGHUP.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=max(1, round(service.limits.timeout)),
            h11_max_incomplete_event_size=HEADERS,
        )
    )
    # uvicorn takes these two over, and once it has ended raises again the one that ended it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    hung_up = threading.Event()
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: hung_up.set())
    failed: list[Exception] = []

    def keep_open() -> None:
        try:
            service.indexes.open()
        # Raised by the main thread, once the server has ended.
        except Exception as error:
            failed.append(error)
            server.should_exit = True
            return
        service.state = "ready"
        logger.info("ready: %s", ", ".join(service.indexes.names))
        while True:
            force = hung_up.wait(SECONDS_BETWEEN_LOOKS)
            hung_up.clear()
            try:
                service.indexes.refresh(force=force)
            # The thread must outlive whatever a folder can do to it.
            except Exception:
                logger.exception("looking for new generations failed")

    threading.Thread(target=keep_open, name="nestling-indexes", daemon=True).start()
    try:
        server.run(sockets=[sock])
    finally:
        service.close()
    if failed:
        raise failed[0]

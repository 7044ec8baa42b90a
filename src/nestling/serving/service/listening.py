"""A server process: the socket, uvicorn around the app, slow clients cut off, new indexes, and a clean end."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from nestling.errors import InputError
from nestling.serving.service.guard import Guard
from nestling.serving.service.service import Service

if TYPE_CHECKING:
    import uvicorn

logger = logging.getLogger(__name__)

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
SECONDS_BETWEEN_LOOKS = 2.0
BACKLOG = 512
KEEP_ALIVE = 15
SPARE_FILES = 256


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def allowed_hosts(host: str) -> frozenset[str] | None:
    """Return what a Host header may name: the local names on loopback, anything elsewhere, where a key is asked for."""
    if not is_loopback(host):
        return None
    return LOCAL_HOSTS | {f"[{host.strip('[]')}]" if ":" in host else host.lower()}


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one.

    Raises:
        InputError: the port is taken or not allowed, or the host is not this machine's.
    """
    if not 0 <= port <= 65_535:
        raise InputError(f"--port must be between 0 and 65535, not {port}")
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except socket.gaierror:
        raise InputError(f"--host {host}: no such host; give an address of this machine, as in 127.0.0.1") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} of {host} is taken; give another with --port") from None
        raise InputError(f"cannot listen on {host} port {port}: {(error.strerror or str(error)).lower()}") from None
    sock.setblocking(False)
    return sock


def url_of(host: str, sock: socket.socket) -> str:
    """Return where a browser finds the server."""
    name = f"[{host.strip('[]')}]" if ":" in host else host
    return f"http://{name}:{sock.getsockname()[1]}/"


def serve(service: Service, app: Guard, sock: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C: finish what is under way, refuse what is new, and return.

    Requests are answered with 503 until the indexes are open. A manifest is looked at every two seconds, and at once
    on SIGHUP.

    Raises:
        InputError: uvicorn is missing, or an index cannot be opened.
    """
    server = _server(service, app)
    _allow_files(2 * service.limits.connections + SPARE_FILES)
    failed: list[Exception] = []

    def load() -> None:
        try:
            service.indexes.open()
        # Told by the main thread, once the server has ended.
        except Exception as error:
            failed.append(error)
            server.should_exit = True
            return
        if service.state == "loading":
            service.state = "ready"
            logger.info("ready: %s", ", ".join(service.indexes.names))

    loader = threading.Thread(target=load, name="nestling-loader", daemon=True)
    loader.start()
    watcher = _Watcher(service)
    try:
        server.run(sockets=[sock])
    finally:
        service.state = "stopping"
        watcher.close()
        service.close()
    if failed:
        raise failed[0]


def _allow_files(wanted: int) -> None:
    """Raise the number of files and sockets that may be open, as far as the system lets a user do that."""
    try:
        import resource
    except ModuleNotFoundError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class _Watcher:
    """Looks for new generations in a thread of its own."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._wake, self._over, self._forced = threading.Event(), False, False
        self._thread = threading.Thread(target=self._run, name="nestling-watcher", daemon=True)
        if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGHUP, self._hung_up)
        self._thread.start()

    def close(self) -> None:
        self._over = True
        self._wake.set()
        self._thread.join(timeout=1)

    def _hung_up(self, *_: Any) -> None:
        self._forced = True
        self._wake.set()

    def _run(self) -> None:
        while not self._over:
            self._wake.wait(SECONDS_BETWEEN_LOOKS)
            self._wake.clear()
            force, self._forced = self._forced, False
            if self._service.state == "ready" and not self._over:
                try:
                    self._service.indexes.refresh(force=force)
                # The thread must outlive whatever a folder can do to it.
                except Exception:
                    logger.exception("looking for new generations failed")


def _server(service: Service, app: Guard) -> uvicorn.Server:
    try:
        import uvicorn
        from uvicorn.protocols.http.h11_impl import H11Protocol
    except ModuleNotFoundError:
        raise InputError("nestling serve needs uvicorn: pip install 'nestling[serve]'") from None
    limits = service.limits

    class Protocol(H11Protocol):
        """Closes connections that send no whole headers, or do not read, within a limit, and those beyond a bound."""

        _waiting: asyncio.TimerHandle | None = None
        _writing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            if len(self.connections) >= 2 * limits.connections:
                service.metrics.rejected("connections")
            super().connection_made(transport)  # type: ignore[arg-type]
            if len(self.connections) > 2 * limits.connections:
                self.transport.abort()
                return
            self._await_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._heard()
            elif self._waiting is None and not self.transport.is_closing():
                self._await_headers()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle is not None and not self.cycle.response_complete:
                self._heard()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._writing is None:
                self._writing = self.loop.call_later(limits.reading, self._cut)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._writing is not None:
                self._writing.cancel()
                self._writing = None

        def _await_headers(self) -> None:
            self._waiting = self.loop.call_later(limits.reading, self._cut)

        def _heard(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

        def _cut(self) -> None:
            self._stop()
            service.metrics.rejected("slow")
            self.transport.abort()

        def _stop(self) -> None:
            self._heard()
            if self._writing is not None:
                self._writing.cancel()
                self._writing = None

    class Server(uvicorn.Server):
        """Stops listening only when what is under way is done, so that what is new is told so."""

        _stopping: float | None = None

        def handle_exit(self, sig: int, frame: Any) -> None:
            if self._stopping is not None:
                self.force_exit = self.should_exit = True
                return
            self._stopping = time.monotonic()
            service.state = "stopping"

        async def on_tick(self, counter: int) -> bool:
            if self._stopping is not None:
                waited = time.monotonic() - self._stopping
                if not app.under_way or waited > limits.timeout + limits.reading:
                    self.should_exit = True
            return await super().on_tick(counter)

    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(limits.timeout)),
        h11_max_incomplete_event_size=16_384,
    )
    return Server(config)

"""Load on `nestling serve` from a process of its own: how many requests a second, how late, and what memory does.

    python benchmarks/serving.py --quick
    python benchmarks/serving.py --index INDEX --minutes 10
    python benchmarks/serving.py --index INDEX --idle 1000 --slow 50

The server is a process that this one starts; the clients are here, so that they take no time of its event loop. Clients
are added, each asking as soon as it is answered, until twice as many bring less than 5 % more. Each query is another,
so that nothing is answered from a cache. Then, with --minutes, that load goes on, with a line a minute. Without --index
a generated catalogue of 2,000 products is indexed with an averaging table of random vectors, which costs the encoder
next to nothing: what is measured then is the server. Idle connections send nothing; slow clients send their body a byte
at a time.

The last line is `serving: REQUESTS` a second at saturation.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

CLIENTS = (1, 2, 4, 8, 16, 32, 64, 128)
ENOUGH = 1.05
WORDS = ("steel", "claw", "hammer", "white", "paint", "saw", "wood", "cordless", "drill", "filter", "hinge", "brass")


@dataclass
class Tally:
    """What a span of load brought."""

    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Requests answered with 200, a second."""
        return self.statuses["200"] / self.seconds if self.seconds else 0.0

    def row(self, clients: int, rss: float) -> str:
        """Return a line of the table."""
        p50, p99 = (1000 * np.quantile(self.latencies, (0.5, 0.99))) if self.latencies else (0.0, 0.0)
        statuses = " ".join(f"{status}:{count}" for status, count in sorted(self.statuses.items()))
        return f"{clients:>8} {self.rate:>12.1f} {p50:>9.2f} {p99:>9.2f} {rss:>9.1f}  {statuses}"


class Client:
    """One keep-alive connection."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[str, bytes]:
        """Send a request; return its status and body."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        top = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(top.split("content-length:")[1].split("\r\n")[0])
        content = await reader.readexactly(length)
        if "connection: close" in top:
            self.close()
        return top.split(" ", 2)[1], content

    def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


async def load(port: int, clients: int, seconds: float, mode: str | None, numbers: Iterator[int]) -> Tally:
    """Let clients ask for a while."""
    tally = Tally()
    until = time.perf_counter() + seconds

    async def one() -> None:
        client = Client(port)
        while (began := time.perf_counter()) < until:
            n = next(numbers)
            words = " ".join(WORDS[(n * step + n // 7) % len(WORDS)] for step in (1, 3, 5))
            request = {"query": f"{words} {n}", "k": 10} | ({"mode": mode} if mode else {})
            try:
                status, _ = await client.ask("POST", "/search", json.dumps(request).encode())
                if status == "200":
                    tally.latencies.append(time.perf_counter() - began)
                else:
                    await asyncio.sleep(0.01)
            except (OSError, EOFError, asyncio.IncompleteReadError) as error:
                client.close()
                status = type(error).__name__
                await asyncio.sleep(0.05)
            tally.statuses[status] += 1
        client.close()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    tally.seconds = time.perf_counter() - began
    return tally


@contextlib.asynccontextmanager
async def crowd(port: int, idle: int, slow: int) -> AsyncIterator[None]:
    """Hold connections that send nothing, and some that send a byte a second, opened anew when they are cut."""
    over = False

    async def hold(*, slowly: bool) -> None:
        while not over:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                with contextlib.suppress(OSError, TimeoutError):
                    if slowly:
                        writer.write(b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n")
                    while not over:
                        with contextlib.suppress(TimeoutError):
                            if not await asyncio.wait_for(reader.read(4096), 1):
                                break
                        if slowly:
                            writer.write(b" ")
                writer.close()
            await asyncio.sleep(0.1)

    tasks = [asyncio.create_task(hold(slowly=n < slow)) for n in range(idle + slow)]
    await asyncio.sleep(1 if tasks else 0)
    try:
        yield
    finally:
        over = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def resident(port: int) -> float:
    """Return the server's resident memory in MB, as it tells; 0 where it takes no more connections."""
    client = Client(port)
    try:
        _, content = await client.ask("GET", "/metrics")
    except (OSError, EOFError):
        return 0.0
    finally:
        client.close()
    lines = content.decode().splitlines()
    return next((float(line.split()[1]) / 1e6 for line in lines if line.startswith("process_resident_mem")), 0.0)


async def measure(port: int, options: argparse.Namespace) -> float:
    """Raise the load to saturation, then hold it."""
    control = Client(port)
    while (await control.ask("GET", "/health"))[0] != "200":
        await asyncio.sleep(0.1)
    numbers = itertools.count()
    step = 2.0 if options.quick else 10.0
    await load(port, 4, 1.0, options.mode, numbers)
    best, chosen = 0.0, 1
    print(f"{'clients':>8} {'requests/s':>12} {'p50 ms':>9} {'p99 ms':>9} {'RSS MB':>9}  answers")
    async with crowd(port, options.idle, options.slow):
        for clients in CLIENTS:
            tally = await load(port, clients, step, options.mode, numbers)
            print(tally.row(clients, await resident(port)), flush=True)
            if tally.rate < best * ENOUGH:
                break
            best, chosen = tally.rate, clients
        for _ in range(options.minutes):
            tally = await load(port, chosen, 60.0, options.mode, numbers)
            print(tally.row(chosen, await resident(port)), flush=True)
    control.close()
    return best


def small_index(folder: Path) -> Path:
    """Index 2,000 generated products with a table of random vectors."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from nestling.judgments.toolshed import generate

    fixtures = import_module("fixtures.served")
    judged = generate(12_000, seed=1).frame
    frame = judged.unique("document_id", keep="first", maintain_order=True).select("document_id", "document", "brand")
    model = fixtures.make_table(folder, frame["document"].to_list(), dim=256)
    fixtures.write_index(folder / "index", frame[:2_000], model)
    return folder / "index"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, help="an index that nestling index wrote")
    parser.add_argument("--model", help="its model, where that has moved")
    parser.add_argument("--mode", choices=("fused", "dense", "lexical"), help="by default the index's best")
    parser.add_argument("--minutes", type=int, default=0, help="go on at saturation for so long")
    parser.add_argument("--idle", type=int, default=0, help="connections that send nothing")
    parser.add_argument("--slow", type=int, default=0, help="clients that send a byte a second")
    parser.add_argument("--quick", action="store_true", help="2 seconds a step; about 20 in all")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        index = options.index or small_index(Path(folder))
        more = ["--model", options.model] if options.model else []
        process = subprocess.Popen(
            [sys.executable, "-m", "nestling", "serve", str(index), "--port", "0", *more],
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                sys.exit("the server did not start")
            best = asyncio.run(measure(int(line.rstrip("/\n").rsplit(":", 1)[1]), options))
        finally:
            process.terminate()
            status = process.wait(60)
    print(f"the server ended with {status}")
    print(f"serving: {best:.0f}")


if __name__ == "__main__":
    main()

"""The engine for more than one process or machine: Ray Data hands partitions to workers that write their files."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nestling.environment import needed
from nestling.errors import InputError
from nestling.serving.encode.files import WORK, Part
from nestling.serving.encode.partitions import Slice
from nestling.serving.encode.worker import Job, Worker

SECONDS_TO_ANSWER = 5.0
TRIES = 4
"""Of a partition. Ray starts a worker that died again without end, also one that dies of its partition."""
OBJECTS = 100 * 2**20
"""Bytes of a local cluster's object store: only numbers of partitions pass through it."""
LONGEST_FOLDER = 32
"""Ray's sockets lie some 65 characters below its folder, and a socket's path may have 107."""
# A client of HTTP/2, and so of gRPC, begins with these; a server answers with its settings, frame type 4.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS_FRAME = 4


@dataclass(frozen=True)
class Cluster:
    """What workers may run on: CPUs and GPUs of each machine."""

    cpus: tuple[int, ...]
    gpus: tuple[int, ...]

    def capacity(self, threads: int, *, gpu: bool = False) -> int:
        """Return how many workers of so many CPUs (and a GPU each) there is room for."""
        each = zip(self.cpus, self.gpus, strict=True)
        return sum(min(c // threads, g) if gpu else c // threads for c, g in each)


@contextmanager
def ray_cluster(address: str | None, *, cpus: int) -> Iterator[Cluster]:
    """Connect to a cluster, or start one on this machine that ends with the block.

    Where the process is connected already, that cluster is used and left connected. No usage is reported to Ray's
    makers, and there is no dashboard.

    Args:
        address: HOST:PORT of a cluster, `auto`, or None for one of our own.
        cpus: of one of our own.

    Raises:
        InputError: Ray is missing, or nothing answers at the address.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray tells of each pool of workers, on standard error, that its retries might fail.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray = needed("--engine ray", "ray", "ray.data")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield _seen(ray)
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    folder = None
    try:
        if address is None:
            base = tempfile.gettempdir()
            folder = tempfile.mkdtemp(prefix="nestling-ray-", dir=base if len(base) <= LONGEST_FOLDER - 21 else "/tmp")
            quiet |= {"include_dashboard": False, "object_store_memory": OBJECTS, "_temp_dir": folder}
            ray.init(address="local", num_cpus=cpus, **quiet)
        else:
            _connect(ray, address, quiet)
        yield _seen(ray)
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def encode_on_ray(job: Job, slices: Sequence[Slice], *, workers: int) -> Iterator[Part]:
    """Encode partitions on the cluster that is connected; yield each when its file is there, in any order.

    A worker is an actor that opens the encoder once and has as many CPUs as the recipe has threads. A partition whose
    worker dies is encoded again, `TRIES` times in all.

    Raises:
        InputError: a worker could not open the model or read a partition, or a partition's workers all died.
        OSError: a worker could not write, as on a full disk.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.data.exceptions import SystemException

    DataContext.get_current().enable_progress_bars = False
    by_number = {part.number: part for part in slices}
    # A partition is one item and one block: Ray splits and joins blocks, but never what is inside an item.
    items = ray.data.from_items([{"number": number} for number in by_number], override_num_blocks=len(by_number))
    done = items.map_batches(
        _Actor,
        fn_constructor_args=(job, by_number),
        batch_size=1,
        compute=ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
        num_cpus=job.recipe.threads,
        num_gpus=1 if job.recipe.device == "cuda" else None,
    )
    try:
        for row in done.iter_rows():
            if row["errno"]:
                raise OSError(int(row["errno"]), os.strerror(int(row["errno"])), str(row["fault"]))
            if row["fault"]:
                raise InputError(str(row["fault"]))
            yield Part(str(row["file"]), int(row["rows"]), str(row["fingerprint"]))
    except (ray.exceptions.RayError, SystemException) as error:
        if isinstance(error, ray.exceptions.RayTaskError):
            raise
        why = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[-1]
        raise InputError(
            f"the Ray cluster lost its workers or could not start them ({why}); see that nestling is installed on "
            "every machine, and give the same command again: what is encoded is kept"
        ) from None


class _Actor:
    """A worker in a process of Ray's. Bad input comes back as a row, for Ray would wrap what is raised."""

    def __init__(self, job: Job, by_number: dict[int, Slice]) -> None:
        # Read when tokenizers first starts its threads, of which there would else be one for each core.
        os.environ["RAYON_NUM_THREADS"] = str(job.recipe.threads)
        self.job, self.by_number = job, by_number
        self.worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        made, fault, number = Part("", 0, ""), "", 0
        part = self.by_number[int(batch["number"][0])]
        try:
            self.worker = self.worker or Worker(self.job)
            self._count(part)
            made = self.worker.encode(part)
        except InputError as error:
            fault = str(error)
        except OSError as error:
            if error.errno is None:
                raise
            fault, number = str(error.filename or self.job.out), error.errno
        return {
            "file": [made.file],
            "rows": [made.rows],
            "fingerprint": [made.fingerprint],
            "fault": [fault],
            "errno": [number],
        }

    def _count(self, part: Slice) -> None:
        """Count the times that a partition is begun, in a file, for what dies of it forgets.

        Raises:
            InputError: it was begun too often.
        """
        path = self.job.out / WORK / f"tries-{part.number}"
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as file:
            if file.tell() >= TRIES:
                raise InputError(
                    f"{part.path}, rows {part.start:,} to {part.start + part.rows:,}: {TRIES} workers died of it; "
                    "where memory ran out, give fewer --workers, or a smaller --partition and another folder"
                )
            file.write(b".")


def _seen(ray: Any) -> Cluster:
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Cluster(tuple(int(n.get("CPU", 0)) for n in alive), tuple(int(n.get("GPU", 0)) for n in alive))


def _connect(ray: Any, address: str, quiet: dict[str, Any]) -> None:
    if address != "auto":
        _check_answers(address)
    try:
        ray.init(address=address, **quiet)
    except (SystemExit, ConnectionError, RuntimeError, ValueError, AssertionError) as error:
        # Ray leaves the process where a cluster is not what it expects.
        why = (
            ""
            if isinstance(error, SystemExit)
            else f" ({(str(error).strip() or type(error).__name__).splitlines()[0]})"
        )
        raise InputError(f"--address {address}: no Ray cluster to connect to{why}; see that it runs") from None


def _check_answers(address: str) -> None:
    """See that a server of gRPC answers, for Ray itself tries for two minutes.

    Raises:
        InputError: nothing answers within seconds, or something else does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"--address {address!r}: give HOST:PORT of a Ray cluster, as in 10.0.0.5:6379, or auto")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            connection.settimeout(SECONDS_TO_ANSWER)
            connection.sendall(PREFACE)
            head = connection.recv(9)
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise InputError(f"--address {address}: does not answer ({why}); see that the Ray cluster runs") from None
    if len(head) < 4 or head[3] != SETTINGS_FRAME:
        raise InputError(f"--address {address}: what answers there is no Ray cluster; give its HOST:PORT")

"""The engine for more than one process or machine: a pool of Ray's actors, each with an encoder of its own."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from nestling.environment import needed
from nestling.errors import InputError, first_line
from nestling.serving.encode.files import Part
from nestling.serving.encode.partitions import Slice
from nestling.serving.encode.worker import Job, Worker

SECONDS_TO_ANSWER = 5.0
TRIES = 4
"""Of a partition. Ray would start a worker that died again without end, also one that dies of its partition."""
OBJECTS = 100 * 2**20
"""Bytes of a local cluster's object store: only numbers of partitions pass through it."""


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
    ray = needed("--engine ray", "ray")
    with ExitStack() as stack:
        if not ray.is_initialized():
            options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
            if address is None:
                # Below /tmp whatever TMPDIR says, since Ray's sockets lie in it, and a socket's path is short.
                folder = TemporaryDirectory(prefix="nestling-ray-", dir="/tmp", ignore_cleanup_errors=True)
                options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
                options |= {"object_store_memory": OBJECTS, "_temp_dir": stack.enter_context(folder)}
            elif address != "auto":
                _check_answers(address)
            stack.callback(ray.shutdown)
            try:
                ray.init(**options)
            # Ray leaves the process where a cluster is not what it expects.
            except (SystemExit, ConnectionError, RuntimeError, ValueError, AssertionError) as error:
                if address is None:
                    raise
                why = "" if isinstance(error, SystemExit) else f" ({first_line(error)})"
                raise InputError(f"--address {address}: no Ray cluster to connect to{why}; see that it runs") from None
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield Cluster(tuple(int(n.get("CPU", 0)) for n in alive), tuple(int(n.get("GPU", 0)) for n in alive))


def encode_on_ray(job: Job, slices: Sequence[Slice], *, workers: int) -> Iterator[tuple[Slice, Part]]:
    """Encode partitions on the cluster that is connected; yield each when its file is there, in any order.

    A worker is an actor that opens the encoder once and has as many CPUs as the recipe has threads. A partition whose
    worker dies is encoded again, `TRIES` times in all.

    Raises:
        InputError: a worker could not open the model or read a partition, or a partition's workers all died.
        OSError: a worker could not write, as on a full disk.
    """
    import ray
    from ray.util import ActorPool

    gpus = 1 if job.recipe.device == "cuda" else 0
    actor = ray.remote(num_cpus=job.recipe.threads, num_gpus=gpus, max_restarts=-1, max_task_retries=TRIES - 1)(_Actor)
    pool = ActorPool([actor.remote(job) for _ in range(workers)])
    try:
        yield from pool.map_unordered(lambda one, part: one.encode.remote(part), slices)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, InputError | OSError) else error) from None
    except ray.exceptions.RayError as error:
        raise InputError(
            f"the Ray cluster lost its workers or could not start them ({first_line(error)}); see that nestling is "
            "installed on every machine, where memory ran out give fewer --workers, or a smaller --partition and "
            "another folder, and give the same command again: what is encoded is kept"
        ) from None


class _Actor:
    """A worker in a process of Ray's, made when it is first used, for Ray hides what is wrong before that."""

    def __init__(self, job: Job) -> None:
        # Read when tokenizers first starts its threads, of which there would else be one for each core.
        os.environ["RAYON_NUM_THREADS"] = str(job.recipe.threads)
        self.job = job
        self.worker: Worker | None = None

    def encode(self, part: Slice) -> tuple[Slice, Part]:
        self.worker = self.worker or Worker(self.job)
        return part, self.worker.encode(part)


def _check_answers(address: str) -> None:
    """See that something listens, for Ray itself tries for two minutes.

    Raises:
        InputError: nothing answers within seconds.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"--address {address!r}: give HOST:PORT of a Ray cluster, as in 10.0.0.5:6379, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise InputError(f"--address {address}: does not answer ({why}); see that the Ray cluster runs") from None

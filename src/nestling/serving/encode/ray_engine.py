"""The engine for more than one process or machine: a pool of Ray's actors, each with an encoder of its own."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from nestling.environment import needed
from nestling.errors import InputError, first_line
from nestling.progress import Observer
from nestling.serving.encode.files import Part, Recipe
from nestling.serving.encode.partitions import Slice
from nestling.serving.encode.worker import Worker

TRIES = 4
"""Of a partition. Ray would start a worker that died again without end, also one that dies of its partition."""


@dataclass(frozen=True)
class Cluster:
    """CPUs and GPUs of each machine."""

    nodes: tuple[tuple[int, int], ...]

    def threads(self, workers: int) -> int:
        """Return the CPUs that each of so many workers can have."""
        cpus = [each for each, _ in self.nodes]
        return max(1, min(sum(cpus) // workers, max(cpus, default=1)))

    def workers(self, recipe: Recipe, requested: int | None, observer: Observer) -> int:
        """Return how many workers encode at once; InputError where there is room for none."""
        gpu = recipe.device == "cuda"
        fitting = [(cpus // recipe.threads, gpus) for cpus, gpus in self.nodes]
        room = sum(min(both) if gpu else both[0] for both in fitting)
        if room == 0:
            what = f"{recipe.threads} CPUs" + (" and a GPU" if gpu else "")
            raise InputError(f"no machine of the Ray cluster has {what}, which a worker takes; give --threads, fewer")
        if requested is not None and requested > room:
            observer.note(f"{room} workers, not {requested}: the cluster has room for no more of {recipe.threads} CPUs")
        return min(requested or room, room)


@contextmanager
def ray_cluster(address: str | None, *, cpus: int) -> Iterator[Cluster]:
    """Connect to a cluster, or start one on this machine that ends with the block.

    Where the process is connected already, that cluster is used and left connected. The address is HOST:PORT, `auto`,
    or None for a cluster of our own with so many CPUs.
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
                # No texts and no vectors pass through the object store.
                options |= {"object_store_memory": 100 * 2**20, "_temp_dir": stack.enter_context(folder)}
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
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield Cluster(tuple((int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes))


def encode_on_ray(worker: Worker, slices: Sequence[Slice], workers: int) -> Iterator[tuple[Part, bool]]:
    """Encode partitions on the cluster that is connected, and yield what `Worker.encode` returns, in any order.

    Each of the workers is an actor with as many CPUs as the recipe has threads, and an encoder of its own. A partition
    whose worker dies is encoded again, `TRIES` times in all. Raises what a worker raised: InputError or OSError.
    """
    import ray
    from ray.util import ActorPool

    recipe = worker.recipe
    gpus = 1 if recipe.device == "cuda" else 0
    actor = ray.remote(num_cpus=recipe.threads, num_gpus=gpus, max_restarts=-1, max_task_retries=TRIES - 1)(Worker)
    needs = (worker.model, worker.out, worker.source, recipe)
    actors = [actor.remote(*needs) for _ in range(min(workers, len(slices)))]
    try:
        yield from ActorPool(actors).map_unordered(lambda one, part: one.encode.remote(part), slices)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, InputError | OSError) else error) from None
    except ray.exceptions.RayError as error:
        raise InputError(
            f"the Ray cluster lost its workers or could not start them ({first_line(error)}); see that nestling is "
            "installed on every machine, where memory ran out give fewer --workers, or a smaller --partition and "
            "another folder, and give the same command again: what is encoded is kept"
        ) from None
    finally:
        # Else they keep their CPUs for as long as an error that was raised lives.
        for each in actors:
            with suppress(Exception):
                ray.kill(each)


def _check_answers(address: str) -> None:
    """See that something listens, for Ray itself tries for two minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"--address {address!r}: give HOST:PORT of a Ray cluster, as in 10.0.0.5:6379, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        why = error.strerror or first_line(error)
        raise InputError(f"--address {address}: does not answer ({why}); see that the Ray cluster runs") from None

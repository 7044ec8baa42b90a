"""Encodes a catalogue of any size into a folder of Parquet files, partition by partition; a stopped call goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from nestling.config.names import MAX_UNPACKED
from nestling.environment import needed, versions
from nestling.errors import InputError
from nestling.models.encoder import open_encoder
from nestling.models.torch_encoder import TorchEncoder
from nestling.progress import Observer
from nestling.serving.encode.files import MANIFEST, EncodedFolder, Recipe, read_encoded
from nestling.serving.encode.partitions import open_source
from nestling.serving.encode.ray_engine import encode_on_ray, ray_cluster
from nestling.serving.encode.worker import Worker, runtime_of
from nestling.serving.index.files import LOCK, locked

Precision = Literal["float32", "float16"]
WORK = ".work"


@dataclass(frozen=True)
class EncodeSettings:
    """Settings for encoding a catalogue; a number below 1 or an unknown precision raises InputError.

    Attributes:
        partition: most documents of a file.
        dim: of the vectors, cut and brought back to length 1; None keeps the model's.
        threads: of an encoder, on which last bits may depend; None takes the folder's, else what the machine has.
    """

    partition: int = 50_000
    batch: int = 64
    dim: int | None = None
    precision: Precision = "float32"
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("partition", "batch", "dim", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} must be 1 or more, not {value}")
        if self.precision not in ("float32", "float16"):
            raise InputError(f"--precision {self.precision!r}: give float32 or float16")


@dataclass(frozen=True)
class Encoded:
    """The folder, now complete; partitions that were encoded, and that were there before; encoders at once."""

    folder: EncodedFolder
    encoded: int
    kept: int
    workers: int


def encode_catalogue(
    model: str,
    source: str | Path,
    out: Path,
    *,
    settings: EncodeSettings | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    workers: int | None = None,
    document: Sequence[str] = (),
    document_id: str | None = None,
    max_unpacked: int = MAX_UNPACKED,
    observer: Observer | None = None,
) -> Encoded:
    """Encode a catalogue's documents, or what has changed of them since the last call.

    The engines differ only in where a partition is encoded, so they give the same bits on the same kind of machine.
    Where Ray has several machines, the model, the catalogue and `out` have to be the same places for all of them.

    Args:
        model: for `open_encoder`.
        source: for `load_catalogue`, as are `document`, `document_id` and `max_unpacked`; or a folder of Parquet files.
        engine: `local` encodes in this process; `ray` on a cluster.
        address: of the cluster; None starts one on this machine.
        workers: of the cluster; by default as many as there is room for.
    """
    settings, observer = settings or EncodeSettings(), observer or Observer()
    if engine == "local" and (address is not None or workers is not None):
        raise InputError("--address and --workers are for --engine ray; local encodes in one process")
    if workers is not None and workers < 1:
        raise InputError(f"--workers must be 1 or more, not {workers}")
    needed("nestling encode", "pyarrow")
    with locked(out, {MANIFEST, LOCK}, "encode", "vectors"), ExitStack() as stack:
        earlier = read_encoded(out) if (out / MANIFEST).exists() else None
        # Before the cluster, so that it goes after Ray's workers have.
        stack.callback(shutil.rmtree, out / WORK, ignore_errors=True)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cluster = stack.enter_context(ray_cluster(address, cpus=cores)) if engine == "ray" else None
        default = cluster.threads(workers) if cluster and workers else cores
        threads = settings.threads or (earlier.recipe.threads if earlier else default)
        encoder = open_encoder(model, threads=threads)
        dim = settings.dim or encoder.dim
        if dim > encoder.dim:
            raise InputError(f"--dim {dim}: the model's vectors have {encoder.dim}; give 1 to {encoder.dim}")
        settings = replace(settings, dim=dim, threads=threads)
        recipe = Recipe(encoder.fingerprint, *runtime_of(encoder), **asdict(settings))
        if earlier is not None and recipe != earlier.recipe:
            old, new = asdict(earlier.recipe), asdict(recipe)
            differing = "; ".join(f"{name} {old[name]}, not {new[name]}" for name in new if old[name] != new[name])
            if recipe.fingerprint != earlier.recipe.fingerprint:
                differing = f"another model ({earlier.model}), not with {model} as it is now"
            raise InputError(f"{out} was encoded with {differing}; give another folder, or remove this one")
        at_once = cluster.workers(recipe, workers, observer) if cluster else None
        opened = open_source(source, out / WORK, settings.partition, document, document_id, max_unpacked)
        for note in opened.notes:
            observer.note(note)
        # Ray's workers have another working directory.
        path = Path(model).expanduser()
        worker = Worker(str(path.resolve()) if path.exists() else model, out.resolve(), opened, recipe, encoder)
        return _encode(model, worker, at_once, observer)


def _encode(model: str, worker: Worker, ray_workers: int | None, observer: Observer) -> Encoded:
    """Bring all partitions up to date, on so many of Ray's workers or by this one, and remove files of no partition."""
    out, slices = worker.out, worker.source.slices
    sizes = {part.file: part.rows for part in slices}
    folder = EncodedFolder(model, worker.source.name, worker.recipe, False, (), versions())
    folder.write(out)
    parts, kept, done, total = {}, 0, 0, sum(sizes.values())
    where = f"on Ray, {ray_workers} workers of {worker.recipe.threads} CPUs" if ray_workers else "in this process"
    observer.stage("encode", f"{total:,} documents in {len(sizes):,} partitions, {where}")
    if isinstance(worker.encoder, TorchEncoder):
        worker.encoder.progress = lambda encoded, _: observer.encoding("", min(done + encoded, total), total)
    results = encode_on_ray(worker, slices, ray_workers) if ray_workers else map(worker.encode, slices)
    try:
        for part, unchanged in results:
            parts[part.file] = part
            kept += unchanged
            done += sizes[part.file]
            observer.encoding("", done, total)
    finally:
        observer.done()
    folder = replace(folder, partitions=tuple(parts[file] for file in sizes), complete=True)
    folder.write(out)
    for path in [*out.glob("part-*.parquet"), *out.glob(".part-*.part.parquet")]:
        if path.name not in parts:
            path.unlink(missing_ok=True)
    return Encoded(folder, len(parts) - kept, kept, ray_workers or 1)

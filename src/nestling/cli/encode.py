"""The verb that encodes a catalogue into Parquet files: encode. Parse, call, print."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from nestling.cli.console import observer
from nestling.cli.options import IdColumn, Json, MaxUnpacked, TextColumns, with_commas
from nestling.errors import clean


def encode(
    model: Annotated[str, Parameter(help="A folder that export, shrink or train wrote, a bundled name or a hub id.")],
    catalogue: Annotated[str, Parameter(help="What nestling index takes, or a folder of Parquet files of any size.")],
    out: Annotated[Path, Parameter(help="The folder for the vectors; one that is there is brought up to date.")],
    *,
    engine: Annotated[Literal["local", "ray"], Parameter(help="This process, or workers on a Ray cluster.")] = "local",
    address: Annotated[str | None, Parameter(help="HOST:PORT of the Ray cluster; else one on this machine.")] = None,
    partition: Annotated[int, Parameter(help="Most documents of a file: what an interruption can cost.")] = 50_000,
    batch: Annotated[int, Parameter(help="Texts of a forward pass.")] = 64,
    dim: Annotated[int | None, Parameter(help="Cut vectors to their first DIM; by default the model's size.")] = None,
    precision: Annotated[Literal["float32", "float16"], Parameter(help="In which they are stored.")] = "float32",
    workers: Annotated[int | None, Parameter(help="Encoders at once, of ray; else as many as there is room for.")] = (
        None
    ),
    threads: Annotated[int | None, Parameter(help="Of an encoder; under ray its CPUs. By default the folder's.")] = (
        None
    ),
    document: TextColumns = (),
    document_id: IdColumn = None,
    max_unpacked: MaxUnpacked = 2048,
    as_json: Json = False,
) -> None:
    """Encode a catalogue into Parquet files of vectors. Called again, it encodes only what is missing or changed."""
    from nestling.serving.encode.catalogue import EncodeSettings, encode_catalogue

    done = encode_catalogue(
        model,
        catalogue,
        out,
        settings=EncodeSettings(partition, batch, dim, precision, threads),
        engine=engine,
        address=address,
        workers=workers,
        document=with_commas(document),
        document_id=document_id,
        max_unpacked=max_unpacked,
        observer=observer(),
    )
    folder, partitions = done.folder, len(done.folder.partitions)
    if as_json:
        counts = {"documents": folder.rows, "partitions": partitions, "encoded": done.encoded, "kept": done.kept}
        about = {"model": folder.model, "source": folder.source, "workers": done.workers, **asdict(folder.recipe)}
        print(json.dumps({"out": str(out), **counts, **about}))
        return
    recipe = folder.recipe
    print(
        f"documents   {folder.rows:,} in {partitions:,} partitions: {done.encoded:,} encoded, {done.kept:,} as before"
    )
    print(f"vectors     {recipe.dim} dims, {recipe.precision}, by {recipe.runtime} on {recipe.device}")
    print(f"folder      {clean(str(out))}")

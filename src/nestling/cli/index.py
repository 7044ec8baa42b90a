"""The verbs that encode, index and search a catalogue. Parse, call, print."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from nestling.cli.console import observer
from nestling.cli.options import (
    CatalogueOptions,
    EngineName,
    IdColumn,
    Json,
    MaxUnpacked,
    MostHits,
    TextColumns,
    with_commas,
)
from nestling.errors import InputError, clean

if TYPE_CHECKING:
    from rich.table import Table

    from nestling.serving.index.index import Hit


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


def index(
    model: Annotated[str, Parameter(help="A folder that export, shrink or train wrote, a bundled name or a hub id.")],
    catalogue: Annotated[str, Parameter(help="Any source of judgments, a file of products, or a text a line (.txt).")],
    out: Annotated[Path, Parameter(help="The index's folder; one that is there is brought up to date.")],
    *,
    columns: CatalogueOptions = CatalogueOptions(),
    shortlist: Annotated[
        str, Parameter(help="DIMS:PRECISION of the codes that find candidates, as in 48:int8; auto chooses.")
    ] = "auto",
    exact_up_to: Annotated[int, Parameter(help="With more documents an inverted file (faiss) is built.")] = 50_000,
    target: Annotated[float, Parameter(help="Share of the exact top 10 that a search must find.")] = 0.995,
    bm25: Annotated[bool, Parameter(help="Index the words too.", negative="--no-bm25")] = True,
    bm25_weight: Annotated[
        str | None, Parameter(help="Weight of BM25, or a run's model whose weight to take; by default MODEL's own.")
    ] = None,
    language: Annotated[str, Parameter(help="Of BM25's stemmer.")] = "english",
    engine: EngineName = "torch-fp32",
    rebuild: Annotated[bool, Parameter(help="Replace what is there, and encode all anew.")] = False,
    as_json: Json = False,
) -> None:
    """Index a catalogue for search. Called again, it encodes only what is new or changed, and removes what is gone."""
    from nestling.models.encoder import open_encoder
    from nestling.serving.index.build import index as write
    from nestling.serving.index.settings import IndexSettings, fusion_for

    settings = IndexSettings(shortlist, exact_up_to, target, bm25, language)
    fusion = fusion_for(model, bm25_weight) if bm25 else None
    watcher, encoder = observer(), open_encoder(model, engine=engine)
    done = write(
        encoder,
        columns.load(catalogue, watcher),
        out,
        model=model,
        settings=settings,
        fusion=fusion,
        rebuild=rebuild,
        observer=watcher,
    )
    if as_json:
        about = {key: value for key, value in asdict(done.manifest).items() if key != "files"}
        counts = {"encoded": done.encoded, "kept": done.kept, "removed": done.removed}
        print(json.dumps({"out": str(done.path), **counts, "bytes_in_memory": done.bytes_in_memory, **about}))
        return
    manifest = done.manifest
    changes = f"{done.encoded:,} texts encoded, {done.kept:,} documents as before, {done.removed:,} removed"
    how = "all scanned" if not manifest.lists else f"an inverted file, {manifest.lists:,} lists looked into"
    agreement = "" if manifest.agreement is None else f"; {manifest.agreement:.1%} of the exact top 10"
    print(f"documents   {manifest.documents:,}: {changes}")
    print(f"search      {how}, {manifest.shortlist:,} candidates rescored{agreement}")
    print(f"memory      {done.bytes_in_memory:,.0f} bytes a document")
    if manifest.fusion is not None:
        print(f"bm25        added with weight {manifest.fusion['weight']:g}")
    elif manifest.settings["bm25"]:
        print("bm25        no weight is known, so it is searched apart; give one with --bm25-weight")
    if manifest.warning:
        print(f"WARNING     {manifest.warning}")
    print(f"index       {done.path}")


def search(
    path: Annotated[Path, Parameter(help="The folder of an index.")],
    *queries: Annotated[str, Parameter(help="What to search; several are searched in turn.")],
    k: MostHits = 10,
    mode: Annotated[
        Literal["fused", "dense", "lexical"] | None, Parameter(help="By default the best that the index has.")
    ] = None,
    filters: Annotated[
        tuple[str, ...], Parameter(name="--filter", help="FIELD=VALUE; of one field any, of several all.")
    ] = (),
    model: Annotated[str | None, Parameter(help="The index's model, where it has moved.")] = None,
    engine: EngineName = "torch-fp32",
    verify: Annotated[bool, Parameter(help="Compare every file's checksum first.")] = False,
    as_json: Json = False,
) -> None:
    """Search in an index."""
    from nestling.serving.index.index import Index

    if not queries:
        raise InputError("search needs a query after the index, as in nestling search INDEX 'cordless drill'")
    if k < 1:
        raise InputError(f"-k must be 1 or more, not {k}")
    field_values: dict[str, list[str]] = {}
    for text in filters:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--filter {text!r}: give FIELD=VALUE, as in brand=Acme")
        field_values.setdefault(name, []).append(value)
    opened = Index.open(path, model=model, engine=engine, verify=verify)
    results = list(zip(queries, opened.search(list(queries), k, mode=mode, filters=field_values), strict=True))
    if as_json:
        searches = [{"query": query, "hits": [asdict(hit) for hit in hits]} for query, hits in results]
        print(json.dumps({"mode": mode or opened.modes[0], "results": searches}))
        return
    console = Console()
    for query, hits in results:
        console.print(hits_table(query, hits, mode or opened.modes[0]))


def hits_table(query: str, hits: list[Hit], caption: str | None = None) -> Table:
    """Return the terminal table of what a query finds."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(clean(query)), caption=caption, title_justify="left", caption_justify="left")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("id", overflow="fold")
    table.add_column("document", overflow="fold")
    for hit in hits:
        text = hit.text if len(hit.text) <= 200 else hit.text[:199] + "…"
        lines = "\n".join(clean(line) for line in text.splitlines())
        table.add_row(str(hit.rank), f"{hit.score:.3f}", escape(clean(hit.document_id)), escape(lines))
    if not hits:
        table.add_row("", "", "", "nothing found")
    return table

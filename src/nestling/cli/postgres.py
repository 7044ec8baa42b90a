"""The verb for shops that keep their products in PostgreSQL: postgres. Parse, call, print."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from nestling.cli.console import observer
from nestling.cli.index import hits_table
from nestling.cli.options import CatalogueOptions, EngineName, Json, MostHits
from nestling.errors import InputError

DATA = Path("runs/postgres")


def postgres(
    model: Annotated[str, Parameter(help="A model: a run's, an exported or shrunk folder, any other, or a hub id.")],
    catalogue: Annotated[str, Parameter(help="Documents: any source of judgments, or a text file, one a line.")],
    *,
    dsn: Annotated[
        str | None, Parameter(help="postgresql://USER@HOST/DATABASE; without it a server is started in --data.")
    ] = None,
    data: Annotated[Path | None, Parameter(help=f"Folder of the server without --dsn; {DATA} by default.")] = None,
    table: Annotated[str, Parameter(help="TABLE or SCHEMA.TABLE.")] = "nestling_documents",
    shortlist: Annotated[
        str | None, Parameter(help="What finds candidates: DIMS:halfvec or DIMS:bit; 48:halfvec by default.")
    ] = None,
    columns: CatalogueOptions = CatalogueOptions(),
    search: Annotated[tuple[str, ...], Parameter(help="A query to search for; may be repeated.")] = (),
    k: MostHits = 10,
    batch: Annotated[int, Parameter(help="Documents in a transaction.")] = 1_000,
    remove_missing: Annotated[bool, Parameter(help="Delete documents that the catalogue no longer has.")] = False,
    adopt: Annotated[bool, Parameter(help="Take a table that Nestling did not make, if its columns fit.")] = False,
    engine: EngineName = "torch-fp32",
    as_json: Json = False,
) -> None:
    """Put a catalogue and its vectors into PostgreSQL with pgvector, and search there. Called again, it goes on."""
    from nestling.models.encoder import open_encoder, prepare
    from nestling.serving.engines.postgres import server as postgres_server
    from nestling.serving.engines.postgres.store import Store

    if dsn is not None and data is not None:
        raise InputError("--data is the folder of a server that is started here, and --dsn names another; give one")
    if k < 1:
        raise InputError(f"-k must be 1 or more, not {k}")
    watching = observer()
    documents = columns.load(catalogue, watching)
    address = dsn if dsn is not None else str(postgres_server.start(data or DATA).get_uri())
    # Before the model is opened, since a wrong address shows at once.
    with Store.connect(address, table=table, observer=watching) as store:
        encoder = open_encoder(model, engine=engine)
        prepare(encoder, lambda: documents.frame["document"].to_list(), texts=len(documents))
        loaded = store.sync(
            encoder,
            documents,
            model=model,
            shortlist=shortlist,
            batch=batch,
            remove_missing=remove_missing,
            adopt=adopt,
        )
        results = list(zip(search, store.search(encoder, search, k) if search else [], strict=True))
        sizes, meta = store.sizes(), store.meta()
    if as_json:
        about = {"table": str(store.names), "shortlist": str(meta.shortlist) if meta else None, **asdict(loaded)}
        searches = [{"query": query, "hits": [_as_dict(hit) for hit in hits]} for query, hits in results]
        print(json.dumps({**about, "bytes": sizes, "searches": searches}))
        return
    for query, hits in results:
        Console().print(hits_table(query, hits))
    table_mb, shortlist_mb, other_mb = (f"{sizes[part] / 1e6:,.1f} MB" for part in ("table", "shortlist", "other"))
    print(f"documents  {loaded.encoded:,} encoded, {loaded.kept:,} kept, {loaded.removed:,} removed")
    size = f"{sizes['documents']:,} documents, {table_mb}; shortlist {shortlist_mb}, other indexes {other_mb}"
    print(f"table      {store.names}, {size}")
    print(f"search     SELECT * FROM {store.names}_search($1::vector, 10)")


def _as_dict(hit: Any) -> dict[str, Any]:
    return {"rank": hit.rank, "id": hit.document_id, "score": hit.score, "text": hit.text, "fields": hit.fields}

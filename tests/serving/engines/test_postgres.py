"""The search on PostgreSQL, against a real server: agrees with numpy, loses nothing, touches nothing of others'."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.errors import InputError
from nestling.judgments.catalogue import Catalogue
from nestling.retrieval.vectors import truncate
from nestling.serving.engines.postgres import connection as postgres_connection
from nestling.serving.engines.postgres import schema as postgres_schema
from nestling.serving.engines.postgres import server as postgres_server
from nestling.serving.engines.postgres.schema import Names, Shortlist
from nestling.serving.engines.postgres.store import Store, storable

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")

DIM = 32
NUMBERS = count()
WORDS = [
    "drill",
    "saw",
    "hammer",
    "light",
    "door",
    "sink",
    "paint",
    "wood",
    "steel",
    "white",
    "inch",
    "water",
    "heater",
    "kit",
    "bit",
    "set",
    "case",
    "oak",
    "glass",
]


@dataclass
class WordEncoder:
    """The mean of a random vector for each word, noted as it encodes; `before` is called first, with the call's number.

    Stands in for a model, since its vectors are spread and need no weights.
    """

    fingerprint: str = "0123456789abcdef"
    dim: int = DIM
    codec: None = None
    before: Callable[[int], None] = lambda number: None
    calls: list[list[str]] = field(default_factory=list)

    def encode(self, texts: Sequence[str], *, kind: str = "document") -> np.ndarray:
        if kind == "document":
            self.before(len(self.calls))
            self.calls.append(list(texts))
        return truncate(np.array([np.mean([_of(w) for w in text.split()] or [_of("")], axis=0) for text in texts]), DIM)

    @property
    def encoded(self) -> list[str]:
        return [text for call in self.calls for text in call]


@cache
def _of(word: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(word.encode("utf-8", "replace")).digest()[:4], "big")
    return np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)


def products(n: int, *, seed: int = 0) -> Catalogue:
    rng = np.random.default_rng(seed)
    texts = [f"{' '.join(rng.choice(WORDS, 4))} item{i}" for i in range(n)]
    brands = [["Acme", "Bosch", "acme"][i % 3] for i in range(n)]
    ids = [f"p{i:05}" for i in range(n)]
    return Catalogue(pl.DataFrame({"document_id": ids, "document": texts, "brand": brands}))


def catalogue(**rows: str) -> Catalogue:
    return Catalogue(pl.DataFrame({"document_id": list(rows), "document": list(rows.values())}))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    try:
        running = postgres_server.start(tmp_path_factory.mktemp("postgres") / "data")
    except InputError as error:
        pytest.skip(f"no embedded PostgreSQL: {error}")
    # A database a test, and none of them has to outlive the machine.
    administer(running, "ALTER SYSTEM SET fsync = off")
    administer(running, "SELECT pg_reload_conf()")
    yield running
    running.cleanup()


@pytest.fixture
def dsn(server: Any) -> Iterator[str]:
    name = f"shop{next(NUMBERS)}"
    administer(server, f"CREATE DATABASE {name}")
    yield server.get_uri(database=name)
    administer(server, f"DROP DATABASE {name} WITH (FORCE)")


def administer(server: Any, statement: str) -> None:
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as admin:
            admin.execute(statement)
    except psycopg.OperationalError as error:
        log = server.log.read_text(errors="replace") if server.log.exists() else "its folder is gone"
        pytest.fail(f"the server is away: {error}; the end of its log: {log[-2_000:]}")


@pytest.fixture
def store(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(postgres_connection, "WAITS", (0.05, 0.1))
    with Store.connect(dsn, table="items") as opened:
        yield opened


def sql(dsn: str, query: str, *values: Any) -> list[tuple]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(query, values or None)
        return cursor.fetchall() if cursor.description else []


def rows_of(dsn: str, table: str = "items") -> list[tuple]:
    return sql(dsn, f"SELECT document_id, document, fields, text_hash, embedding::text FROM {table} ORDER BY 1")


@pytest.mark.parametrize("shortlist", [300, 0])
def test_a_search_whose_shortlist_covers_all_or_is_left_out_gives_the_exact_order(shortlist: int, store: Store):
    encoder, items = WordEncoder(), products(300)
    store.sync(encoder, items, shortlist="8:halfvec")
    queries = ["white door", "steel drill bit", "sink"]
    stored = encoder.encode(items.frame["document"].to_list()).astype(np.float16).astype(np.float32)
    scores = encoder.encode(queries, kind="query").astype(np.float16).astype(np.float32) @ stored.T
    for hits, row in zip(store.search(encoder, queries, 10, shortlist=shortlist), scores, strict=True):
        order = np.argsort(-row, kind="stable")[:10]
        assert [hit.document_id for hit in hits] == [items.frame["document_id"][int(i)] for i in order]
        np.testing.assert_allclose([hit.score for hit in hits], row[order], atol=1e-5)
        assert [hit.rank for hit in hits] == list(range(1, 11))
        assert hits[0].text == items.frame["document"][int(order[0])]
        assert hits[0].fields == {"brand": items.frame["brand"][int(order[0])]}


@pytest.mark.parametrize("kind", ["8:halfvec", "16:bit"])
def test_candidates_come_in_the_order_of_the_shortened_and_renormalised_vectors(kind: str, store: Store):
    encoder, items = WordEncoder(), products(200)
    store.sync(encoder, items, shortlist=kind)
    vectors, query = encoder.encode(items.frame["document"].to_list()), encoder.encode(["white oak door"], kind="query")
    if kind == "8:halfvec":
        codes = [truncate(each.astype(np.float16).astype(np.float32), 8) for each in (vectors, query)]
        near = (codes[0] @ codes[1].T)[:, 0]
    else:
        near = -((vectors[:, :16] > 0) != (query[:, :16] > 0)).sum(axis=1).astype(np.float32)
    # Equal Hamming distances leave open which are candidates, so the cut is put where there is a step.
    order = np.argsort(-near, kind="stable")
    cut = next(i for i in range(12, 200) if near[order[i - 1]] > near[order[i]])
    hits = store.search(encoder, ["white oak door"], cut, shortlist=cut)[0]
    assert {hit.document_id for hit in hits} == {items.frame["document_id"][int(i)] for i in order[:cut]}


@pytest.mark.parametrize("kind", ["16:halfvec", "32:bit"])
def test_a_larger_table_is_searched_by_its_index_and_most_candidates_are_the_nearest(kind: str, store: Store, dsn: str):
    encoder, items = WordEncoder(), products(3_000)
    store.sync(encoder, items, shortlist=kind)
    queries = [f"{a} {b}" for a in WORDS[:4] for b in WORDS[5:10]]
    vectors, asked = encoder.encode(items.frame["document"].to_list()), encoder.encode(queries, kind="query")
    if kind == "16:halfvec":
        near = truncate(asked, 16) @ truncate(vectors, 16).T
    else:
        near = -((vectors[None] > 0) != (asked[:, None] > 0)).sum(axis=2).astype(np.float32)
    place = {key: row for row, key in enumerate(items.frame["document_id"])}
    shares = []
    for hits, row in zip(store.search(encoder, queries, 100, shortlist=100), near, strict=True):
        last = np.sort(row)[-100]
        shares.append(np.mean([row[place[hit.document_id]] >= last - 1e-3 for hit in hits]))
        assert len(hits) == 100
    assert np.mean(shares) >= 0.95
    store.close()
    scans = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'items_shortlist'"
    assert _soon(lambda: sql(dsn, scans), [(len(queries),)])


def _soon(ask: Callable[[], Any], wanted: Any) -> bool:
    """Wait for what the server counts, which a session hands over when it ends."""
    for _ in range(100):
        if ask() == wanted:
            return True
        time.sleep(0.05)
    return False


def test_a_second_call_encodes_nothing_and_changes_nothing(store: Store, dsn: str):
    encoder = WordEncoder()
    first = store.sync(encoder, products(25), batch=10)
    before = rows_of(dsn)
    second = store.sync(encoder, products(25), batch=10)
    assert (first.encoded, first.kept, second.encoded, second.kept) == (25, 0, 0, 25)
    assert len(encoder.encoded) == 25
    assert rows_of(dsn) == before


def test_only_changed_and_new_texts_are_encoded(store: Store, dsn: str):
    store.sync(WordEncoder(), catalogue(a="drill", b="saw", c="door"))
    encoder = WordEncoder()
    loaded = store.sync(encoder, catalogue(a="drill", b="white saw", d="sink"))
    assert encoder.encoded == ["white saw", "sink"]
    assert (loaded.encoded, loaded.kept, loaded.removed) == (2, 1, 0)
    assert [row[:2] for row in rows_of(dsn)] == [("a", "drill"), ("b", "white saw"), ("c", "door"), ("d", "sink")]
    assert store.search(encoder, ["white saw"], 1)[0][0].score == pytest.approx(1, abs=1e-3)


def test_changed_fields_are_written_without_encoding(store: Store, dsn: str):
    items = products(3)
    store.sync(WordEncoder(), items)
    encoder = WordEncoder()
    store.sync(encoder, Catalogue(items.frame.with_columns(brand=pl.lit("New"))))
    assert encoder.calls == []
    assert [row[2] for row in rows_of(dsn)] == [{"brand": "New"}] * 3


def test_documents_that_the_catalogue_no_longer_has_go_only_when_asked(store: Store, dsn: str):
    store.sync(WordEncoder(), products(25))
    assert store.sync(WordEncoder(), products(10)).removed == 0
    assert len(rows_of(dsn)) == 25
    assert store.sync(WordEncoder(), products(10), remove_missing=True).removed == 15
    assert [row[0] for row in rows_of(dsn)] == [f"p{i:05}" for i in range(10)]


def test_hostile_ids_texts_fields_and_filters_are_data(store: Store, dsn: str):
    hostile = ["'; DROP TABLE items; --", '"$nestling$ %s {} \\', "<b>\u202e\U0001f528</b>", "$1' OR 'a'='a"]
    frame = pl.DataFrame({"document_id": hostile, "document": [f"{h} drill" for h in hostile], "na'm\"e": hostile})
    encoder = WordEncoder()
    store.sync(encoder, Catalogue(frame))
    assert [(row[0], row[1]) for row in rows_of(dsn)] == sorted((h, f"{h} drill") for h in hostile)
    for text in hostile:
        hits = store.search(encoder, [text], 4, filters={"na'm\"e": text})[0]
        assert [(hit.document_id, hit.fields) for hit in hits] == [(text, {"na'm\"e": text})]
        assert store.search(encoder, [text], 4, filters={text: text})[0] == []


def test_what_postgres_cannot_store_becomes_a_replacement_character(store: Store, dsn: str):
    frame = pl.DataFrame({"document_id": ["a", "b"], "document": ["drill\x00saw", "door"], "f": ["x\x00", "y\\u0000"]})
    encoder = WordEncoder()
    loaded = store.sync(encoder, Catalogue(frame))
    assert loaded.replaced == 1
    assert encoder.encoded == ["drill\ufffdsaw", "door"]
    assert [row[1:3] for row in rows_of(dsn)] == [("drill\ufffdsaw", {"f": "x\ufffd"}), ("door", {"f": "y\\u0000"})]
    assert store.sync(encoder, Catalogue(frame)).kept == 2
    for asked in ("x\x00", "x\ud800"):
        assert [hit.document_id for hit in store.search(encoder, ["q\x00\ud800"], filters={"f": asked})[0]] == ["a"]


@given(st.text())
@settings(max_examples=50)
def test_a_storable_text_is_as_long_and_can_be_encoded(text: str):
    found = storable(text)
    assert len(found) == len(text)
    assert "\x00" not in found.encode().decode()


@pytest.mark.parametrize(("key", "fault"), [("a\x00b", "NUL"), ("é" * 1_001, "2,000 bytes")])
def test_an_id_that_cannot_be_stored_is_refused_before_anything_is_made(key: str, fault: str, store: Store, dsn: str):
    with pytest.raises(InputError, match=f"document 2.*{fault}"):
        store.sync(WordEncoder(), catalogue(**{"fine": "drill", key: "saw"}))
    assert sql(dsn, "SELECT to_regclass('items')") == [(None,)]


def test_a_table_that_nestling_did_not_make_is_left_alone(store: Store, dsn: str):
    sql(dsn, "CREATE TABLE items (document_id text PRIMARY KEY, price integer)")
    sql(dsn, "INSERT INTO items VALUES ('a', 3)")
    with pytest.raises(InputError, match="was not made by Nestling and is left alone"):
        store.sync(WordEncoder(), products(3))
    with pytest.raises(InputError, match=r"cannot be adopted: document must be text, is missing; .*embedding must be"):
        store.sync(WordEncoder(), products(3), adopt=True)
    assert sql(dsn, "SELECT * FROM items") == [("a", 3)]
    assert sql(dsn, "SELECT to_regclass('items_meta')") == [(None,)]


@pytest.mark.parametrize("stored", ["vector", "halfvec"])
def test_a_table_whose_columns_fit_is_adopted_with_its_rows(stored: str, store: Store, dsn: str):
    sql(dsn, "CREATE EXTENSION vector")
    sql(
        dsn,
        "CREATE TABLE items (k integer DEFAULT 7, document_id text UNIQUE, document text, fields jsonb, "
        f"text_hash text, fingerprint text, embedding {stored}({DIM}))",
    )
    sql(dsn, "INSERT INTO items (document_id, document) VALUES ('old', 'sink'), ('a', 'saw')")
    encoder = WordEncoder()
    store.sync(encoder, catalogue(a="saw", b="drill"), adopt=True)
    assert encoder.encoded == ["saw", "drill"]
    assert sql(dsn, "SELECT document_id, k FROM items ORDER BY 1") == [("a", 7), ("b", 7), ("old", 7)]
    hits = store.search(encoder, ["drill"], 1)[0]
    assert [(hit.document_id, round(hit.score, 2), hit.fields) for hit in hits] == [("b", 1.0, {})]


def test_a_table_without_a_unique_id_is_not_adopted_and_nothing_is_made(store: Store, dsn: str):
    sql(dsn, "CREATE EXTENSION vector")
    sql(
        dsn,
        "CREATE TABLE items (k integer NOT NULL, document_id text, document text, fields jsonb, text_hash text, "
        f"fingerprint text, embedding halfvec({DIM}))",
    )
    with pytest.raises(InputError, match="document_id has no unique index of its own; k must have a default"):
        store.sync(WordEncoder(), products(3), adopt=True)
    assert sql(dsn, "SELECT to_regclass('items_meta')") == [(None,)]


@pytest.mark.parametrize(
    "there",
    ["TABLE items_meta (a int)", "VIEW items_shortlist AS SELECT 1", "FUNCTION items_search() RETURNS int RETURN 1"],
)
def test_names_that_others_use_are_not_taken(there: str, store: Store, dsn: str):
    sql(dsn, f"CREATE {there}")
    with pytest.raises(InputError, match="give another --table"):
        store.sync(WordEncoder(), products(3))
    assert sql(dsn, "SELECT to_regclass('items')") == [(None,)]


def test_another_model_is_refused_by_load_and_by_search(store: Store, dsn: str):
    store.sync(WordEncoder(), products(3), model="first")
    before = rows_of(dsn)
    other = WordEncoder(fingerprint="fedcba9876543210")
    with pytest.raises(InputError, match=r"another model \(first, fingerprint 0123456789abcdef, not fedcba98"):
        store.sync(other, products(5))
    with pytest.raises(InputError, match="another model"):
        store.search(other, ["drill"])
    assert rows_of(dsn) == before


def test_another_shortlist_is_refused_and_none_means_the_tables_own(store: Store):
    store.sync(WordEncoder(), products(3), shortlist="8:bit")
    with pytest.raises(InputError, match="has a shortlist of 8:bit, not 16:halfvec"):
        store.sync(WordEncoder(), products(3), shortlist="16:halfvec")
    store.sync(WordEncoder(), products(4))
    about = store.meta()
    assert about is not None
    assert str(about.shortlist) == "8:bit"


def test_a_table_that_could_not_be_made_whole_is_not_made_at_all(store: Store, dsn: str, monkeypatch: Any):
    with monkeypatch.context() as patched:
        patched.setattr(postgres_schema, "SCHEMA", postgres_schema.SCHEMA + "SELECT 1 / 0;")
        with pytest.raises(psycopg.errors.DivisionByZero):
            store.sync(WordEncoder(), products(3))
    assert sql(dsn, "SELECT to_regclass('items'), to_regclass('items_meta')") == [(None, None)]
    assert store.sync(WordEncoder(), products(3)).encoded == 3


def test_a_transaction_cut_off_in_the_middle_leaves_nothing_of_its_batch(store: Store, dsn: str):
    store.sync(WordEncoder(), products(10))
    sql(dsn, "ALTER TABLE items ADD CONSTRAINT late CHECK (document_id < 'p00017')")
    with pytest.raises(InputError, match='violates check constraint "late"; that rule is not Nestling'):
        store.sync(WordEncoder(), products(30), batch=5)
    assert [row[0] for row in rows_of(dsn)] == [f"p{i:05}" for i in range(15)]


def test_a_server_that_restarts_in_the_middle_costs_nothing(server: Any, store: Store, dsn: str):
    def restart(number: int) -> None:
        if number == 2:
            server.stop()
            server.start()

    encoder = WordEncoder(before=restart)
    loaded = store.sync(encoder, products(50), batch=10)
    assert (loaded.encoded, loaded.kept) == (50, 0)
    assert len(encoder.encoded) == 50
    assert len(rows_of(dsn)) == 50


def test_a_server_that_stays_away_is_one_line_and_the_same_call_goes_on(server: Any, store: Store, dsn: str):
    def stop(number: int) -> None:
        if number == 2:
            server.stop()

    try:
        with pytest.raises(InputError, match=r"went away and did not come back in 2 attempts .*same command again"):
            store.sync(WordEncoder(before=stop), products(50), batch=10)
    finally:
        server.start()
    assert len(rows_of(dsn)) == 20
    assert store.sync(WordEncoder(), products(50), batch=10).encoded == 30


def test_filters_take_one_value_several_or_none(store: Store):
    encoder, items = WordEncoder(), products(30)
    store.sync(encoder, items)

    def brands(wanted: Any, **more: Any) -> set[str]:
        hits = store.search(encoder, ["drill"], 30, filters={"brand": wanted}, **more)[0]
        return {hit.fields["brand"] for hit in hits}

    assert brands("Acme") == {"Acme"}
    assert brands(["Acme", "Bosch"]) == {"Acme", "Bosch"}
    assert brands([]) == set()
    assert brands("Bosch", shortlist=0) == {"Bosch"}
    assert store.search(encoder, ["drill"], filters={"brand": "Acme", "size": "1"})[0] == []
    assert len(store.search(encoder, ["drill"], 30, filters={})[0]) == 30
    for number, text in ((1, "1"), (1.5, "1.5"), ([True], "true")):
        with pytest.raises(InputError, match=f'the field size is compared as text; give "{text}"'):
            store.search(encoder, ["drill"], filters={"size": number})


def test_a_filter_that_many_documents_pass_goes_through_the_index(store: Store, monkeypatch: Any):
    monkeypatch.setattr(postgres_schema, "FEW", 5)
    encoder, items = WordEncoder(), products(2_000)
    store.sync(encoder, items)
    exact = store.search(encoder, ["white door"], 10, filters={"brand": "Bosch"}, shortlist=0)[0]
    found = store.search(encoder, ["white door"], 10, filters={"brand": "Bosch"})[0]
    assert {hit.fields["brand"] for hit in found} == {"Bosch"}
    assert len({hit.document_id for hit in exact} & {hit.document_id for hit in found}) >= 9


def test_the_function_serves_any_client_and_leaves_its_settings_as_they_were(store: Store, dsn: str):
    store.sync(WordEncoder(), products(20))
    vector = "[" + ",".join(["0.1"] * DIM) + "]"
    with psycopg.connect(dsn) as connection:
        connection.execute("SET hnsw.ef_search = 77")
        connection.execute("SET hnsw.iterative_scan = 'strict_order'")
        rows = connection.execute("SELECT * FROM items_search(%s::vector, 3)", [vector]).fetchall()
        assert len(rows) == 3
        assert rows == sorted(rows, key=lambda row: -row[1])
        assert connection.execute("SHOW hnsw.ef_search").fetchone() == ("77",)
        assert connection.execute("SHOW hnsw.iterative_scan").fetchone() == ("strict_order",)


@pytest.mark.parametrize("more", ["0", "NULL", "3, -1", "3, 10, '[]'", "3, 10, '5'"])
def test_the_function_refuses_what_makes_no_search(more: str, store: Store, dsn: str):
    store.sync(WordEncoder(), products(2))
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        sql(dsn, f"SELECT * FROM items_search((SELECT embedding::vector FROM items LIMIT 1), {more})")


def test_a_table_in_a_schema_of_its_own_is_searched_though_pgvector_is_elsewhere(dsn: str):
    for statement in ("CREATE SCHEMA shop", "CREATE SCHEMA ext", "CREATE EXTENSION vector SCHEMA ext"):
        sql(dsn, statement)
    encoder = WordEncoder()
    with Store.connect(dsn, table="shop.items") as store:
        store.sync(encoder, products(5))
        assert len(store.search(encoder, ["drill"], 3)[0]) == 3
        assert store.sizes()["documents"] == 5
    with (
        Store.connect(dsn, table="shops.items") as store,
        pytest.raises(InputError, match='schema "shops" does not exist; CREATE SCHEMA it'),
    ):
        store.sync(encoder, products(5))


def test_a_search_without_a_table_says_what_to_do(store: Store):
    with pytest.raises(InputError, match=r"there is no table public\.items of Nestling's; load a catalogue"):
        store.search(WordEncoder(), ["drill"])


def test_addresses_that_lead_nowhere_are_one_line_without_the_password(server: Any):
    folder = server.get_postmaster_info().socket_dir
    for address, said in (
        (f"postgresql://postgres@/nowhere?host={folder}", 'database "nowhere" does not exist; make it with createdb'),
        (f"postgresql://nobody@/postgres?host={folder}", 'role "nobody" does not exist; name a user'),
        ("postgresql://u:secret@127.0.0.1:1/x", "cannot be reached"),
        ("postgres//u:secret@host", "--dsn cannot be read"),
    ):
        with pytest.raises(InputError) as caught:
            Store.connect(address)
        assert said in str(caught.value)
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_wrong_password_is_one_line(server: Any, dsn: str):
    sql(dsn, "CREATE ROLE guarded LOGIN PASSWORD 'right'")
    rules = server.pgdata / "pg_hba.conf"
    before = rules.read_text()
    try:
        rules.write_text("local all guarded scram-sha-256\n" + before)
        sql(dsn, "SELECT pg_reload_conf()")
        with pytest.raises(InputError, match='password authentication failed for user "guarded"; give the right one'):
            Store.connect(dsn.replace("postgres:", "guarded:wrong"))
        Store.connect(dsn.replace("postgres:", "guarded:right")).close()
    finally:
        rules.write_text(before)
        sql(dsn, "SELECT pg_reload_conf()")
        sql(dsn, "DROP ROLE guarded")


def test_a_user_without_rights_is_told_which(dsn: str):
    sql(dsn, "CREATE ROLE reader LOGIN")
    try:
        with Store.connect(dsn.replace("postgres:", "reader:"), table="items") as store:
            with pytest.raises(InputError, match=r"may not add pgvector .* CREATE EXTENSION vector"):
                store.sync(WordEncoder(), products(3))
            sql(dsn, "CREATE EXTENSION vector")
            with pytest.raises(InputError, match=r"permission denied for schema public; have its owner grant"):
                store.sync(WordEncoder(), products(3))
    finally:
        sql(dsn, "DROP ROLE reader")


def test_a_server_without_pgvector_is_told(dsn: str):
    name = dsn.partition("?")[0].rpartition("/")[2]
    sql(dsn, f"ALTER DATABASE {name} SET extension_control_path = '/nowhere'")
    with Store.connect(dsn) as store, pytest.raises(InputError, match="this server has no pgvector; install"):
        store.sync(WordEncoder(), products(3))


@pytest.mark.parametrize("text", ["", "a.b.c", "Items", 'a"b', "1a", "a-b", "a;", "é", ".a", "a.", "a" * 51, "a b"])
def test_a_table_with_another_than_a_plain_name_is_refused(text: str):
    with pytest.raises(InputError, match="--table"):
        Names.parse(text)


@pytest.mark.parametrize("text", ["48", "48:int8", "0:bit", "-1:bit", "4001:halfvec", "64001:bit", "²:bit", ":bit"])
def test_a_shortlist_that_pgvector_cannot_hold_is_refused(text: str):
    with pytest.raises(InputError, match="--shortlist"):
        Shortlist.parse(text)


def test_a_model_of_fewer_dims_than_the_shortlist_takes_all_of_its_own(store: Store):
    store.sync(WordEncoder(), products(3))
    meta = store.meta()
    assert meta is not None
    assert str(meta.shortlist) == "32:halfvec"


def test_a_folder_of_something_else_gets_no_server(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="holds something else than PostgreSQL's data"):
        postgres_server.start(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

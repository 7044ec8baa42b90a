"""Search in an index finds what a search through everything finds; filters, fusion and damage are as they should be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.bm25 import scores_of
from fixtures.serving import WORDS, WordEncoder, catalogue, closed, indexed, opened, products
from nestling.errors import InputError
from nestling.retrieval.bm25 import Lexical
from nestling.retrieval.codec import fit_codec
from nestling.retrieval.exact_search import rescore, top_k
from nestling.retrieval.fusion import Fusion
from nestling.serving.index.files import MANIFEST, read_manifest
from nestling.serving.index.index import Index
from nestling.serving.index.shortlist import Exact, Inverted, build_inverted

N = 300
TITLES = products(N)
BRANDS = [["Acme", "Bolt", "Čapek"][i % 3] for i in range(N)]
SIZES = [str(i % 5) for i in range(N)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index") / "shop"
    indexed(path, catalogue(TITLES, brand=BRANDS, size=SIZES), fusion=Fusion(0.3))
    return path


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def cosines(query: str) -> np.ndarray:
    encoder = WordEncoder()
    documents = encoder.encode(TITLES).astype(np.float16).astype(np.float32)
    return documents @ encoder.encode([query])[0]


@pytest.mark.parametrize("shortlist", ["auto", "16:int8", "32:int4", "32:binary", "32:float16"])
def test_dense_results_are_those_of_comparing_with_every_document(tmp_path: Path, shortlist: str):
    indexed(tmp_path / "i", catalogue(TITLES), shortlist=shortlist, target=1.0)
    found = opened(tmp_path / "i").search(["red steel drill", "lamp"], 10, mode="dense")
    for query, hits in zip(["red steel drill", "lamp"], found, strict=True):
        expected = np.sort(cosines(query))[::-1][:10]
        assert [hit.rank for hit in hits] == list(range(1, 11))
        assert [hit.score for hit in hits] == pytest.approx(expected.tolist(), abs=1e-5)
        assert all(cosines(query)[hit.row] == pytest.approx(hit.score, abs=1e-5) for hit in hits)
        assert all(hit.text == TITLES[hit.row] and hit.document_id == str(hit.row) for hit in hits)


def test_an_inverted_file_of_bits_finds_what_scanning_does_where_vectors_share_a_direction(
    tmp_path: Path,
):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((6000, 32)) + 2 * rng.standard_normal(32)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    asked = vectors[::60] + np.float32(0.02) * rng.standard_normal((100, 32)).astype(np.float32)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    codec = fit_codec("binary", vectors)
    exact = Exact(codec, codec.encode(vectors))
    inverted = build_inverted(vectors, exact, tmp_path / "i")
    best, _ = top_k(asked, vectors, 10)

    def share(found: np.ndarray) -> float:
        return float(np.mean([np.isin(own, some).mean() for own, some in zip(best, found, strict=True)]))

    assert share(inverted.candidates(asked, 400)) > share(exact.candidates(asked, 400)) - 0.02


@pytest.mark.parametrize("shortlist", ["16:int8", "32:int4", "32:binary"])
def test_an_inverted_file_finds_what_it_was_asked_to_find(tmp_path: Path, shortlist: str):
    pytest.importorskip("faiss")
    done = indexed(tmp_path / "i", catalogue(TITLES), shortlist=shortlist, exact_up_to=100, target=0.99)
    assert done.manifest.lists > 0
    assert done.manifest.agreement is not None
    assert done.manifest.agreement >= 0.99
    index = opened(tmp_path / "i")
    # Looking into every list misses nothing, with a shortlist of everything.
    query = WordEncoder().encode(["red steel drill"])
    assert isinstance(index.shortlist, Inverted)
    _, scores = rescore(query, index.shortlist.candidates(query, N, None, 10_000), index.vectors, 10)
    assert scores[0] == pytest.approx(np.sort(cosines("red steel drill"))[::-1][:10], abs=1e-5)


def test_words_alone_rank_as_bm25_does_and_fusion_is_the_weighted_sum(folder: Path):
    index = opened(folder)
    assert index.modes == ("fused", "dense", "lexical")
    lexical = Lexical.fit(TITLES)
    by_words = scores_of(lexical, ["red drill"])[0]
    [hits] = index.search(["red drill"], 5, mode="lexical")
    assert [hit.row for hit in hits] == np.argsort(-by_words, kind="stable")[:5].tolist()
    [fused] = index.search(["red drill"], 5)
    sums = cosines("red drill") + 0.3 * by_words
    assert [hit.score for hit in fused] == pytest.approx(np.sort(sums)[::-1][:5].tolist(), abs=1e-5)


@pytest.mark.parametrize("mode", ["fused", "dense", "lexical"])
def test_filters_leave_only_what_fits_and_as_many_as_fit(folder: Path, mode):
    index = opened(folder)
    [hits] = index.search(["drill saw hammer"], 400, mode=mode, filters={"brand": ["acme", "ČAPEK"], "size": "2"})
    fits = [i for i in range(N) if i % 3 != 1 and i % 5 == 2]
    rows = [hit.row for hit in hits]
    assert len(set(rows)) == len(rows)
    if mode == "lexical":
        assert set(rows) == {i for i in fits if {"drill", "saw", "hammer"} & set(TITLES[i].split())}
    else:
        assert sorted(rows) == fits
    assert all(hit.fields == {"brand": BRANDS[hit.row], "size": SIZES[hit.row]} for hit in hits)
    assert index.search(["drill"], 3, mode=mode, filters={"brand": "nobody"}) == [[]]
    for number, text in ((2, "2"), ([2.5], "2.5"), (True, "true")):
        with pytest.raises(InputError, match=f'the field size is compared as text; give "{text}"'):
            index.search(["drill"], 3, mode=mode, filters={"size": number})


def test_a_filter_over_an_inverted_file_is_kept_whether_few_or_many_fit(tmp_path: Path, monkeypatch):
    pytest.importorskip("faiss")
    indexed(tmp_path / "i", catalogue(TITLES, brand=BRANDS), exact_up_to=100)
    index = opened(tmp_path / "i")
    for few in (0, 1000):
        monkeypatch.setattr("nestling.serving.index.shortlist.FEW", few)
        [hits] = index.search(["red steel"], 10, mode="dense", filters={"brand": "Bolt"})
        assert len(hits) == 10
        assert {hit.fields["brand"] for hit in hits} == {"Bolt"}


def test_without_faiss_an_inverted_file_is_done_without_and_nothing_is_missed(tmp_path: Path, monkeypatch):
    pytest.importorskip("faiss")
    indexed(tmp_path / "i", catalogue(TITLES), exact_up_to=100, shortlist="32:int8")
    monkeypatch.setattr("nestling.serving.index.index.has_library", lambda: False)
    [hits] = opened(tmp_path / "i").search(["red steel drill"], 10, mode="dense")
    assert [hit.score for hit in hits] == pytest.approx(np.sort(cosines("red steel drill"))[::-1][:10], abs=1e-5)


words = st.lists(st.sampled_from([*WORDS, "unknown", ""]), max_size=4).map(" ".join)
queries = st.lists(words.filter(str.strip), max_size=4)


@given(queries, st.integers(1, 350), st.sampled_from(["fused", "dense", "lexical"]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_queries_give_ranked_distinct_documents_each_as_if_asked_alone(folder: Path, texts, k, mode):
    index = opened(folder)
    found = index.search(texts, k, mode=mode)
    assert len(found) == len(texts)
    for query, hits in zip(texts, found, strict=True):
        scores = [hit.score for hit in hits]
        assert scores == sorted(scores, reverse=True)
        assert len({hit.row for hit in hits}) == len(hits) <= min(k, N)
        [alone] = index.search([query], k, mode=mode)
        assert [hit.score for hit in alone] == pytest.approx(scores, abs=1e-5)


def test_hostile_texts_come_back_as_they_were(tmp_path: Path):
    texts = [
        "<script>\x00alert(1)</script>",
        'quote " \\ {"id": 1}\n second line',
        "emoji 🛠️ \u202e rtl \u2028",
        "x" * 9000,
    ]
    indexed(tmp_path / "i", catalogue(texts, ids=["a\n", "", "ü/..", '"'], note=texts))
    index = opened(tmp_path / "i")
    hits = {hit.row: hit for hit in index.search(["quote"], 4, mode="dense")[0]}
    assert [hits[row].text for row in range(4)] == texts
    assert [hits[row].document_id for row in range(4)] == ["a\n", "", "ü/..", '"']
    assert [index.search(["q"], 4, mode="dense", filters={"note": text})[0][0].text for text in texts] == texts


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda index: index.search(["a"], filters={"colour": "red"}),
            "no field 'colour' to filter by; this index",
        ),
        (lambda index: index.search(["a"], mode="magic"), "cannot be searched by 'magic'; it can by fused, dense"),
        (lambda index: index.search(["drill", " \t\u3000"]), "the query is blank; give words to search for"),
        (lambda index: index.search([""], mode="lexical"), "the query is blank; give words to search for"),
    ],
)
def test_what_an_index_cannot_do_is_said_in_a_line(folder: Path, call, message: str):
    with pytest.raises(InputError, match=message):
        call(opened(folder))


def test_programming_errors_are_value_errors(folder: Path):
    index = opened(folder)
    with pytest.raises(ValueError, match="not one string"):
        index.search("drill")
    for mode in index.modes:
        with pytest.raises(ValueError, match="k must be 1 or more"):
            index.search(["drill"], 0, mode=mode)


def files_of(folder: Path) -> list[str]:
    return sorted(read_manifest(folder).files)


@pytest.mark.parametrize("part", ["vectors.npy", "codes.npy", "documents.jsonl", "codec.safetensors", "filters.json"])
def test_a_truncated_or_missing_file_is_refused_by_its_name(copied: Path, part: str):
    path = copied / read_manifest(copied).generation / part
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InputError, match=rf"{part} has [\d,]+ bytes where [\d,]+ belong, so the index is damaged"):
        opened(copied)
    path.unlink()
    with pytest.raises(InputError, match=f"{part} is missing, so the index is damaged; make it anew"):
        opened(copied)


def test_every_changed_byte_is_found_by_verify(copied: Path):
    manifest = read_manifest(copied)
    for name in files_of(copied):
        path = copied / manifest.generation / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{name} has other content than was written"):
            Index.open(copied, verify=True)
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 99}', "null"])
def test_a_damaged_manifest_is_refused(copied: Path, text: str):
    (copied / MANIFEST).write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json"):
        opened(copied)


def test_a_query_of_which_the_model_knows_nothing_finds_by_words_alone(folder: Path):
    class Deaf(WordEncoder):
        def encode(self, texts, *, kind="document"):
            return np.zeros((len(texts), self.dim), np.float32)

    index = opened(folder, Deaf())
    assert index.search(["red drill"], 5, mode="dense") == [[]]
    [fused] = index.search(["red drill"], 5)
    [by_words] = index.search(["red drill"], 5, mode="lexical")
    assert [hit.row for hit in fused] == [hit.row for hit in by_words]


def changed(copied: Path, key: str, value: object) -> None:
    """Put a value into the manifest, at a dotted key."""
    about = json.loads((copied / MANIFEST).read_text())
    *places, last = key.split(".")
    inner = about
    for place in places:
        inner = inner[place]
    inner[last] = value
    (copied / MANIFEST).write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("documents", "300", 'documents must be a whole number, not "300"'),
        ("documents", True, "documents must be a whole number, not true"),
        ("dim", None, "dim must be a whole number, not null"),
        ("shortlist", 0, "shortlist must be 1 or more, not 0"),
        ("lists", -1, "lists must be 0 or more, not -1"),
        ("agreement", [1], r"agreement must be a number, not \[1\]"),
        ("model", 7, "model must be text, not 7"),
        ("fields", "brand", "fields must be a list, not"),
        ("fields", [1], r"fields\.0 must be text, not 1"),
        ("files", [], r"files must be an object, not \[\]"),
        ("files", {"vectors.npy": [1]}, r"files\.vectors\.npy must be a list of 2"),
        ("files", {"../x": [1, "a"]}, r"names '\.\./x', which is no file of an index"),
        ("generation", "..", r"names '\.\.', which is no file of an index"),
        ("fusion", {"weight": "much"}, "fusion: a fusion has the fields weight, depth"),
        ("fusion.weight", "much", "fusion: a fusion's weight cannot be 'much'"),
    ],
)
def test_a_manifest_with_a_value_of_a_wrong_type_is_refused_by_file_and_key(copied: Path, key, value, what: str):
    changed(copied, key, value)
    with pytest.raises(InputError, match=rf"manifest\.json:? {what}.*make it anew with nestling index --rebuild"):
        opened(copied)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
KEYS = ("generation", "model", "fingerprint", "documents", "dim", "shortlist", "lists", "agreement", "fusion")


@given(st.sampled_from([*KEYS, "fusion.weight", "fusion.depth", "fields", "settings", "warning", "files"]), JSON)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_manifest_holds_an_index_opens_or_is_refused(copied: Path, key: str, value: object):
    before = (copied / MANIFEST).read_text()
    changed(copied, key, value)
    with suppress(InputError):
        opened(copied).search(["drill"], 3)
    (copied / MANIFEST).write_text(before)


@pytest.mark.parametrize("damage", [b"\xff", b"[", b"0"])
def test_a_damaged_row_of_the_documents_is_named_where_it_is_asked_for(copied: Path, damage: bytes):
    path = copied / read_manifest(copied).generation / "documents.jsonl"
    content = bytearray(path.read_bytes())
    for start in [0, *[n + 1 for n, byte in enumerate(content[:-1]) if byte == 10]]:
        content[start : start + 1] = damage
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"documents\.jsonl, line \d+ is damaged; make it anew"):
        opened(copied).search(["red drill"], 3)


@pytest.mark.parametrize("value", [[], {"brand": "Acme"}, {"brand": [1]}, {"brand": {}}, 7])
def test_filters_of_a_wrong_type_are_refused_by_file_and_key(copied: Path, value: object):
    path = copied / read_manifest(copied).generation / "filters.json"
    path.write_text(json.dumps(value))
    changed(copied, "files", {})
    with pytest.raises(InputError, match=r"filters\.json: .* must be .*; make it anew"):
        opened(copied)


def test_a_file_that_may_not_be_read_is_called_that(copied: Path):
    generation = copied / read_manifest(copied).generation
    for path in (copied / MANIFEST, generation / "codec.safetensors", generation / "vectors.npy", generation):
        with closed(path) as there, pytest.raises(InputError, match=rf"cannot read {there}.*: permission denied"):
            opened(there.parent if path.name == MANIFEST else copied)


def test_what_is_no_index_and_another_models_index_are_refused(folder: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"is no index: it has no manifest\.json; make one with nestling index"):
        Index.open(tmp_path)
    with pytest.raises(InputError, match="was made with another model than words"):
        opened(folder, WordEncoder(fingerprint="other"))
    with pytest.raises(InputError, match=r"give the model of .* with --model, or put it into .*model"):
        Index.open(folder)


def test_a_real_model_is_found_where_it_was_or_beside_the_index(tiny_model_path: Path, tmp_path: Path):
    from nestling.models.encoder import open_encoder
    from nestling.serving.index.build import index
    from nestling.serving.index.settings import IndexSettings

    model = Path(shutil.copytree(tiny_model_path, tmp_path / "model"))
    index(open_encoder(model), catalogue(TITLES[:50]), tmp_path / "i", model=str(model), settings=IndexSettings())
    first = Index.open(tmp_path / "i").search([TITLES[3]], 3)
    assert first[0][0].document_id == "3"
    shutil.move(model, tmp_path / "i" / "model")
    assert Index.open(tmp_path / "i").search([TITLES[3]], 3) == first


def test_an_exported_table_searches_an_index_without_torch_or_polars(tmp_path: Path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    from nestling.models.encoder import open_encoder
    from nestling.serving.export.export import export
    from nestling.serving.index.build import index
    from nestling.serving.index.settings import IndexSettings

    words = sorted({word for title in TITLES for word in title.split()})
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, **{word: n + 1 for n, word in enumerate(words)}}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    table = np.random.default_rng(0).standard_normal((len(words) + 1, 16)).astype(np.float32)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)])
    model.save_pretrained(str(tmp_path / "static"))
    export(str(tmp_path / "static"), tmp_path / "light", force=True)
    index(
        open_encoder(tmp_path / "light"),
        catalogue(TITLES, brand=BRANDS),
        tmp_path / "i",
        model=str(tmp_path / "light"),
        settings=IndexSettings(shortlist="16:int8"),
        fusion=Fusion(0.1),
    )
    script = f"""
import json, sys
for name in ("torch", "transformers", "sentence_transformers", "polars", "pyarrow", "scipy", "pydantic", "faiss"):
    sys.modules[name] = None
from nestling.serving.index.index import Index
index = Index.open({str(tmp_path / "i")!r}, verify=True)
print(json.dumps([[hit.document_id for hit in index.search([{TITLES[7]!r}], 3, mode=mode)[0]] for mode in index.modes]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for ids in json.loads(done.stdout):
        assert ids[0] == "7"

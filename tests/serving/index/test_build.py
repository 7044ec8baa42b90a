"""Indexing again encodes only what is new, and whatever stops it, an index that is there stays whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.places import TESTS
from fixtures.serving import WordEncoder, catalogue, indexed, opened, products
from nestling.errors import InputError
from nestling.models.encoder import open_encoder
from nestling.models.engines import engine
from nestling.progress import Observer
from nestling.retrieval.codec import Codec, fit_codec
from nestling.retrieval.fusion import Fusion
from nestling.serving.index import build as indexing
from nestling.serving.index import index as reading
from nestling.serving.index.build import WORK, index
from nestling.serving.index.files import CODEC, TABLE, VECTORS, read_manifest
from nestling.serving.index.index import Index
from nestling.serving.index.settings import IndexSettings, fusion_for, study_fusion
from nestling.serving.index.shortlist import Exact, Inverted, calibrate
from nestling.serving.service.served import Indexes, Source

TITLES = products(60)
ids = st.lists(st.integers(0, 30), unique=True, min_size=1, max_size=20)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def content(folder: Path, *, codec: bool = True) -> dict[str, bytes]:
    generation = folder / read_manifest(folder).generation
    found = {
        path.relative_to(generation).as_posix(): path.read_bytes()
        for path in sorted(generation.rglob("*"))
        if path.is_file()
    }
    # The library writes its header's entries in any order.
    return {**found, CODEC: Codec.load(generation / CODEC).fingerprint.encode()} if codec else found


@given(ids, ids, st.integers(0, 5), st.sampled_from(["auto", "8:int8"]))
@settings(max_examples=15, deadline=None)
def test_an_index_brought_up_to_date_is_the_one_made_anew_and_encodes_new_texts_once(
    tmp_path_factory: pytest.TempPathFactory, before, after, renamed, shortlist
):
    folder = tmp_path_factory.mktemp("i")
    first = catalogue([TITLES[i] for i in before], ids=[str(i) for i in before])
    # Some documents come back with another text under the same id.
    texts = [TITLES[i + 30] if n < renamed and i < 30 else TITLES[i] for n, i in enumerate(after)]
    second = catalogue(texts, ids=[str(i) for i in after])
    indexed(folder / "old", first, shortlist=shortlist)
    encoder = WordEncoder()
    done = indexed(folder / "old", second, encoder=encoder, shortlist=shortlist)
    indexed(folder / "new", second, shortlist=shortlist)
    assert content(folder / "old") == content(folder / "new")
    known = {TITLES[i] for i in before}
    assert encoder.encoded == [text for text in dict.fromkeys(texts) if text not in known]
    assert done.encoded == len(set(texts) - known)
    assert done.kept == sum(text in known for text in texts)
    assert done.removed == len(set(before) - set(after))


def test_equal_texts_are_encoded_once_and_have_one_vector(tmp_path: Path):
    encoder = WordEncoder()
    indexed(tmp_path / "i", catalogue(["red drill", "saw", "red drill"]), encoder=encoder)
    assert encoder.encoded == ["red drill", "saw"]
    vectors = opened(tmp_path / "i").vectors
    assert (vectors[0] == vectors[2]).all()


def test_an_interrupted_call_goes_on_after_its_last_chunk(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(indexing, "CHUNK", 10)

    class Stopped(WordEncoder):
        def encode(self, texts, *, kind="document"):
            if len(self.calls) == 3:
                raise KeyboardInterrupt
            return super().encode(texts, kind=kind)

    with pytest.raises(KeyboardInterrupt):
        indexed(tmp_path / "i", catalogue(TITLES), encoder=Stopped())
    assert not (tmp_path / "i" / "manifest.json").exists()
    encoder = WordEncoder()
    indexed(tmp_path / "i", catalogue(TITLES), encoder=encoder)
    assert encoder.encoded == TITLES[30:]
    indexed(tmp_path / "new", catalogue(TITLES))
    assert content(tmp_path / "i") == content(tmp_path / "new")
    assert not (tmp_path / "i" / WORK).exists()


def test_a_full_disk_leaves_the_index_that_was_there(tmp_path: Path, monkeypatch):
    indexed(tmp_path / "i", catalogue(TITLES[:20]))
    before = content(tmp_path / "i")

    def full(*_args, **_options):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(indexing.documents, "write", full)
    with pytest.raises(OSError, match="No space left"):
        indexed(tmp_path / "i", catalogue(TITLES))
    monkeypatch.undo()
    assert content(tmp_path / "i") == before
    assert [hit.document_id for hit in opened(tmp_path / "i").search([TITLES[3]], 1)[0]] == ["3"]
    encoder = WordEncoder()
    indexed(tmp_path / "i", catalogue(TITLES), encoder=encoder)
    assert encoder.encoded == []
    assert len(opened(tmp_path / "i")) == len(TITLES)


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from fixtures.serving import WordEncoder, catalogue, indexed, products
from nestling.serving.index import build
build.CHUNK = 5
class Slow(WordEncoder):
    def encode(self, texts, *, kind="document"):
        time.sleep(0.05)
        return super().encode(texts, kind=kind)
print("begun", flush=True)
indexed(Path({folder!r}), catalogue(products(200)), encoder=Slow())
"""


@pytest.mark.parametrize("there_before", [False, True])
def test_killed_at_any_time_it_leaves_the_old_index_or_none_and_a_second_call_ends_well(tmp_path: Path, there_before):
    folder = tmp_path / "i"
    titles = products(200)
    if there_before:
        indexed(folder, catalogue(titles[:20]))
    script = KILLED.format(tests=str(TESTS), folder=str(folder))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        deadline = time.monotonic() + 60
        work = folder / WORK
        while time.monotonic() < deadline and len(list(work.rglob("[!.]*.npy"))) < 4:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    saved = len(list(work.rglob("[!.]*.npy")))
    assert 4 <= saved < 36
    if there_before:
        assert len(opened(folder)) == 20
    else:
        with pytest.raises(InputError, match="is no index"):
            read_manifest(folder)
    encoder = WordEncoder()
    mp = pytest.MonkeyPatch()
    mp.setattr(indexing, "CHUNK", 5)
    indexed(folder, catalogue(titles), encoder=encoder)
    mp.undo()
    assert len(encoder.encoded) == (180 if there_before else 200) - 5 * saved
    assert len(opened(folder)) == 200
    there = {path.name for path in folder.iterdir() if path.is_dir()}
    assert there == {read_manifest(folder).generation, *(("000001",) if there_before else ())}


def test_a_reader_keeps_the_index_that_it_opened_while_another_takes_its_place(tmp_path: Path):
    brands = ["Acme", "Bolt"] * 10
    indexed(tmp_path / "i", catalogue(TITLES[:20], brand=brands), fusion=Fusion(0.1))
    old = opened(tmp_path / "i")
    indexed(tmp_path / "i", catalogue(TITLES[20:]))
    for mode in old.modes:
        assert old.search([TITLES[3]], 1, mode=mode, filters={"brand": "bolt"})[0][0].text == TITLES[3]
    assert opened(tmp_path / "i").search([TITLES[33]], 1)[0][0].text == TITLES[33]


def test_only_one_call_at_a_time_may_write(tmp_path: Path):
    indexed(tmp_path / "i", catalogue(TITLES[:20]))
    with FileLock(tmp_path / "i" / ".lock"), pytest.raises(InputError, match="another nestling index works on it"):
        indexed(tmp_path / "i", catalogue(TITLES))


def test_nothing_is_written_where_something_else_lies_or_another_models_index(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(InputError, match="holds something else than an index, so nothing is written there"):
        indexed(tmp_path / "photos", catalogue(TITLES))
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; give a folder"):
        indexed(tmp_path / "file", catalogue(TITLES))
    indexed(tmp_path / "i", catalogue(TITLES))
    with pytest.raises(InputError, match=r"was made with another model \(words\); give another folder, or --rebuild"):
        indexed(tmp_path / "i", catalogue(TITLES), encoder=WordEncoder(fingerprint="other"))
    with pytest.raises(InputError, match="has a shortlist of auto, not 8:int8"):
        indexed(tmp_path / "i", catalogue(TITLES), shortlist="8:int8")
    indexed(tmp_path / "i", catalogue(TITLES), encoder=WordEncoder(fingerprint="other"), rebuild=True)
    assert read_manifest(tmp_path / "i").fingerprint == "other"


def test_a_damaged_chunk_is_not_believed_but_encoded_again(tmp_path: Path):
    class Stopped(WordEncoder):
        def encode(self, texts, *, kind="document"):
            if self.calls:
                raise KeyboardInterrupt
            return super().encode(texts, kind=kind)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexing, "CHUNK", 30)
        with pytest.raises(KeyboardInterrupt):
            indexed(tmp_path / "i", catalogue(TITLES), encoder=Stopped())
        [chunk] = (tmp_path / "i" / WORK).rglob("*.npy")
        flip(chunk)
        encoder = WordEncoder()
        indexed(tmp_path / "i", catalogue(TITLES), encoder=encoder)
    assert encoder.encoded == TITLES
    indexed(tmp_path / "new", catalogue(TITLES))
    assert content(tmp_path / "i") == content(tmp_path / "new")


@pytest.mark.parametrize("name", [VECTORS, TABLE, CODEC])
def test_damage_of_what_an_update_takes_over_is_found_and_not_given_fresh_checksums(tmp_path: Path, name: str):
    indexed(tmp_path / "i", catalogue(TITLES[:20]))
    flip(tmp_path / "i" / read_manifest(tmp_path / "i").generation / name)
    before = content(tmp_path / "i", codec=False)
    with pytest.raises(InputError, match=rf"{name} has other content than was written.*--rebuild"):
        indexed(tmp_path / "i", catalogue(TITLES))
    assert content(tmp_path / "i", codec=False) == before
    indexed(tmp_path / "i", catalogue(TITLES), rebuild=True)
    indexed(tmp_path / "new", catalogue(TITLES))
    assert content(tmp_path / "i") == content(tmp_path / "new")


READER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from fixtures.serving import opened
folder, seen = Path({folder!r}), set()
print("begun", flush=True)
while "000013" not in seen:
    index = opened(folder)
    texts = {{hit.text for hit in index.search(["drill"], 100, mode="dense")[0]}}
    assert len(index) == len(texts) == {{"0": 20, "1": 25}}[str(int(index.manifest.generation) % 2)], len(texts)
    seen.add(index.manifest.generation)
"""


def test_who_opens_an_index_while_it_is_brought_up_to_date_sees_one_generation_whole(tmp_path: Path):
    folder = tmp_path / "i"
    indexed(folder, catalogue(TITLES[:25]))
    script = READER.format(tests=str(TESTS), folder=str(folder))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for n in range(12):
            indexed(folder, catalogue(TITLES[:20] if n % 2 == 0 else TITLES[:25]))
        assert process.wait(60) == 0


def test_a_reader_that_read_the_manifest_just_before_several_updates_looks_again(tmp_path: Path, monkeypatch):
    folder = tmp_path / "i"
    indexed(folder, catalogue(TITLES[:20]))
    stale, real = iter([read_manifest(folder)]), read_manifest
    for n in (30, 40, 50):
        indexed(folder, catalogue(TITLES[:n]))
    # That all these fall into one opening is a race that cannot be had on demand.
    monkeypatch.setattr(reading.files, "read_manifest", lambda path: next(stale, None) or real(path))
    assert len(opened(folder)) == 50


def test_a_models_own_codec_makes_the_codes(tmp_path: Path):
    codec = fit_codec("int4", WordEncoder().encode(TITLES)[:, :16])
    indexed(tmp_path / "i", catalogue(TITLES), encoder=WordEncoder(codec=codec))
    assert opened(tmp_path / "i").shortlist.codec == codec  # type: ignore[attr-defined]


def test_the_chosen_length_is_the_shortest_that_finds_the_share_asked_for():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3000, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cut = vectors[:, :8] / np.linalg.norm(vectors[:, :8], axis=1, keepdims=True)
    codec = fit_codec("int8", cut)
    exact = Exact(codec, codec.encode(cut))
    asked = rng.standard_normal((50, 32)).astype(np.float32)
    top = np.argsort(-(asked @ vectors.T), axis=1)[:, :10]

    def share(length: int) -> float:
        found = exact.candidates(asked, length)
        return float(np.mean([np.isin(own, some).mean() for own, some in zip(top, found, strict=True)]))

    for target in (0.5, 0.8, 0.95, 1.0):
        chosen = calibrate(asked, vectors, exact, None, target=target)
        assert chosen.agreement == pytest.approx(share(chosen.shortlist))
        assert chosen.agreement >= target
        shorter = [length for length in (50, 100, 200, 400, 800, 1600) if length < chosen.shortlist]
        assert not shorter or share(shorter[-1]) < target


class Scattered(WordEncoder):
    """Vectors of which a few components say nothing of the rest, and queries that are near to none."""

    def encode(self, texts, *, kind="document"):
        rng = np.random.default_rng(0 if kind == "query" else 1)
        vectors = rng.standard_normal((len(texts), self.dim))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_where_nothing_short_finds_the_target_whole_vectors_are_searched_and_it_is_said(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(indexing.shortlist, "LENGTHS", (50,))
    notes: list[str] = []

    class Told(Observer):
        def note(self, text: str) -> None:
            notes.append(text)

    for name, exact_up_to in (("scanned", 5000), ("inverted", 100)):
        done = index(
            Scattered(),
            catalogue([f"{n}" for n in range(1000)]),
            tmp_path / name,
            model="words",
            settings=IndexSettings("2:int8", exact_up_to=exact_up_to, bm25=False),
            observer=Told(),
        )
        manifest = read_manifest(tmp_path / name)
        assert (manifest.lists, manifest.agreement) == (0, 1.0)
        assert manifest.warning == done.manifest.warning
        assert "so a search scans whole vectors" in manifest.warning
        assert ("an inverted file found" in manifest.warning) is (name == "inverted")
        assert notes.pop() == f"warning: {manifest.warning}"
        assert done.bytes_in_memory == 64
        assert not list((tmp_path / name).rglob("inverted.faiss"))
        found = opened(tmp_path / name, Scattered())
        asked = Scattered().encode(["a", "b"], kind="query")
        best = np.sort(asked @ found.vectors.astype(np.float32).T, axis=1)[:, ::-1][:, :10]
        np.testing.assert_allclose(found.top_k(asked, 10)[1], best, atol=1e-5)


def test_where_an_inverted_file_misses_the_target_all_codes_are_searched_and_it_is_said(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Inverted, "candidates", lambda *_: np.full((60, 50), -1))
    done = indexed(tmp_path / "i", catalogue(TITLES), exact_up_to=10, shortlist="32:int8")
    assert done.manifest.lists == 0
    assert done.manifest.agreement is not None
    assert done.manifest.agreement >= 0.995
    assert done.manifest.warning.startswith("an inverted file found 0.0% of the exact top 10 where the target is 99.5%")
    assert "so a search scans all codes" in done.manifest.warning
    assert done.bytes_in_memory == 34


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shortlist": "48"}, "--shortlist '48': give auto or DIMS:PRECISION"),
        ({"shortlist": "0:int8"}, "give auto or DIMS:PRECISION"),
        ({"shortlist": "48:int9"}, "of float32, float16, int8, int4, binary"),
        ({"exact_up_to": -1}, "--exact-up-to must be 0 or more"),
        ({"target": 0.0}, "--target must be above 0 and at most 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message: str):
    with pytest.raises(InputError, match=message):
        IndexSettings(**options)


def test_the_studys_weight_is_that_of_the_full_size_in_float32(tmp_path: Path):
    model = tmp_path / "run" / "models" / "graded"
    model.mkdir(parents=True)
    assert study_fusion(model) is None
    told = tmp_path / "run" / "evaluation" / "graded.json"
    told.parent.mkdir()
    told.write_text(
        '{"fusions": {"48 float32": {"weight": 0.3, "normalisation": "none", "depth": 100}, '
        '"384 float32": {"weight": 0.112, "normalisation": "none", "depth": 50}, '
        '"384 int8": {"weight": 9.0, "normalisation": "none", "depth": 100}}}'
    )
    assert study_fusion(model) == Fusion(0.112, depth=50)
    assert fusion_for("all-MiniLM-L6-v2", str(model)) == Fusion(0.112, depth=50)
    assert fusion_for(str(model), "0.5") == Fusion(0.5)
    with pytest.raises(InputError, match="--bm25-weight 'much': give a number"):
        fusion_for(str(model), "much")
    told.write_text("{")
    with pytest.raises(InputError, match=r"graded\.json cannot be read"):
        study_fusion(model)


def test_auto_chooses_an_engine_by_the_number_of_new_texts_and_a_service_for_texts_without_end(
    tmp_path: Path, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
):
    samples, engine_for = [], engine.engine_for

    def recorded(name, model, *, sample=None):
        assert name == "auto"
        samples.append(sample)
        return engine_for("torch-fp32", model)

    monkeypatch.setattr(engine, "engine_for", recorded)
    model, folder = str(tiny_model_path), tmp_path / "i"

    def engine_of(n: int) -> None:
        index(open_encoder(model, engine="auto"), catalogue(TITLES[:n]), folder, model=model, queries=["a drill"])

    for n in (39, 45, 60, 60):
        engine_of(n)
    assert [sample.texts for sample in samples] == [39, 6, 15, 0]
    assert [list(sample.documents) for sample in samples] == [TITLES[:n] for n in (39, 45, 60, 60)]
    assert [list(sample.queries) for sample in samples] == [["a drill"]] * 4
    served = Indexes([Source("i", folder)], opener=lambda one: Index.open(one.path, engine="auto"))
    served.open()
    assert (samples[-1].texts, list(samples[-1].documents)) == (None, TITLES)
    shutil.rmtree(folder)
    engine_of(60)
    assert samples[-1].texts == 60

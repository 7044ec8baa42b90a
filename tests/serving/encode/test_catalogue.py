"""A catalogue becomes Parquet files of the very vectors that the encoder gives, and a stopped call goes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from fixtures.served import make_table
from fixtures.serving import products
from nestling.errors import InputError
from nestling.models.encoder import open_encoder
from nestling.models.exported_encoder import ExportedEncoder
from nestling.models.torch_encoder import TorchEncoder
from nestling.progress import Observer
from nestling.serving.encode import ray_engine as encode_ray
from nestling.serving.encode.catalogue import EncodeSettings, encode_catalogue
from nestling.serving.encode.files import MANIFEST, Part, Recipe, read_encoded, text_hashes
from nestling.serving.encode.partitions import Slice, open_source
from nestling.serving.encode.worker import Worker
from nestling.serving.export.export import export
from nestling.serving.index.files import locked

TITLES = products(50)
SMALL = EncodeSettings(partition=20, threads=1)


@pytest.fixture(scope="module")
def static_model_path(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

    tokenizer = SentenceTransformer(str(tiny_model_path), device="cpu").tokenizer
    rows = np.random.default_rng(0).standard_normal((len(tokenizer), 16)).astype(np.float32)
    folder = tmp_path_factory.mktemp("static") / "model"
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, rows), Normalize()], device="cpu")
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="module")
def table_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in an exported folder, so that no other process has to load torch."""
    return make_table(tmp_path_factory.mktemp("table"), TITLES)


@pytest.fixture(params=["static", "transformer"])
def model(request: pytest.FixtureRequest, tiny_model_path: Path, static_model_path: Path) -> str:
    return str(static_model_path if request.param == "static" else tiny_model_path)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A local Ray cluster with two CPUs, to which this process is connected; its address."""
    ray = pytest.importorskip("ray")
    with encode_ray.ray_cluster(None, cpus=2):
        yield ray.get_runtime_context().gcs_address


def written(path: Path, texts: list[str] = TITLES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({"sku": [f"s{n}" for n in range(len(texts))], "title": texts}).write_parquet(path)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*.parquet"))}


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in sorted(folder.glob("part-*.parquet"))}


def read_part(folder: Path, number: int) -> tuple[list[str], list[str], np.ndarray]:
    """Ids, text hashes and vectors of a partition, as any reader of Parquet has them."""
    part = read_encoded(folder).partitions[number]
    table = pl.read_parquet(folder / part.file)
    assert table.height == part.rows
    return table["document_id"].to_list(), table["text_hash"].to_list(), table["embedding"].to_numpy()


def test_a_partition_has_bit_for_bit_what_the_encoder_gives_for_its_texts(model: str, tmp_path: Path):
    done = encode_catalogue(model, written(tmp_path / "c.parquet"), tmp_path / "out", settings=SMALL)
    encoder = open_encoder(model)
    assert [part.rows for part in done.folder.partitions] == [20, 20, 10]
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["documents"] == 50
    for number, start in enumerate((0, 20, 40)):
        ids, hashes, vectors = read_part(tmp_path / "out", number)
        texts = TITLES[start : start + 20]
        assert ids == [f"s{n}" for n in range(start, start + len(texts))]
        assert hashes == text_hashes(texts)
        assert vectors.dtype == np.float32
        np.testing.assert_array_equal(vectors, encoder.encode(texts))


def test_an_exported_model_encodes_as_its_runtime_does(tiny_model_path: Path, tmp_path: Path):
    pytest.importorskip("onnxruntime")
    export(str(tiny_model_path), tmp_path / "exported", format="onnx")
    source = written(tmp_path / "c.parquet", TITLES[:20])
    done = encode_catalogue(str(tmp_path / "exported"), source, tmp_path / "out", settings=SMALL)
    assert done.folder.recipe.runtime == "onnx-fp32"
    expected = ExportedEncoder.open(tmp_path / "exported", threads=1).encode(TITLES[:20])
    np.testing.assert_array_equal(read_part(tmp_path / "out", 0)[2], expected)
    with pytest.raises(InputError, match="encoded with runtime onnx-fp32, not torch-fp32"):
        encode_catalogue(str(tiny_model_path), source, tmp_path / "out", settings=SMALL)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_vectors_are_cut_brought_to_length_one_and_readable_by_other_tools(
    static_model_path: Path, tmp_path: Path, precision: Any
):
    chosen = EncodeSettings(partition=100, dim=4, precision=precision, threads=1)
    encode_catalogue(str(static_model_path), written(tmp_path / "c.parquet"), tmp_path / "out", settings=chosen)
    table = pl.read_parquet(tmp_path / "out" / "part-00000.parquet")
    assert table.columns == ["document_id", "text_hash", "embedding"]
    assert table["embedding"].dtype == pl.Array({"float32": pl.Float32, "float16": pl.Float16}[precision], 4)
    full = open_encoder(str(static_model_path)).encode(TITLES)[:, :4].astype(np.float64)
    expected = full / np.linalg.norm(full, axis=1, keepdims=True)
    found = np.array(table["embedding"].to_list())
    np.testing.assert_allclose(found, expected, atol=1e-6 if precision == "float32" else 5e-4)


def test_a_second_call_encodes_only_what_is_missing_or_damaged(static_model_path: Path, tmp_path: Path):
    source, out = written(tmp_path / "c.parquet"), tmp_path / "out"
    first = encode_catalogue(str(static_model_path), source, out, settings=SMALL)
    whole, before = files(out), inodes(out)
    assert (first.encoded, first.kept) == (3, 0)
    (out / "part-00001.parquet").unlink()
    (out / "part-00002.parquet").write_bytes(whole["part-00002.parquet"][:-20])
    second = encode_catalogue(str(static_model_path), source, out, settings=SMALL)
    assert (second.encoded, second.kept) == (2, 1)
    assert files(out) == whole
    assert inodes(out)["part-00000.parquet"] == before["part-00000.parquet"]
    third = encode_catalogue(str(static_model_path), source, out, settings=SMALL)
    assert (third.encoded, third.kept) == (0, 3)
    assert third.folder == first.folder


@pytest.mark.parametrize("change", ["text", "id"])
def test_a_changed_text_or_id_encodes_its_partition_anew_and_no_other(
    static_model_path: Path, tmp_path: Path, change: str
):
    source, out = written(tmp_path / "c.parquet"), tmp_path / "out"
    encode_catalogue(str(static_model_path), source, out, settings=SMALL)
    before = inodes(out)
    frame = pl.read_parquet(source)
    column, value = ("title", "a new lamp") if change == "text" else ("sku", "other")
    frame[25, column] = value
    frame.write_parquet(source)
    assert encode_catalogue(str(static_model_path), source, out, settings=SMALL).encoded == 1
    changed = [name for name, number in inodes(out).items() if before[name] != number]
    assert changed == ["part-00001.parquet"]
    ids, hashes, _ = read_part(out, 1)
    assert value == ids[5] if change == "id" else hashes[5] == text_hashes([value])[0]


def test_a_catalogue_that_has_shrunk_leaves_no_file_behind(static_model_path: Path, tmp_path: Path):
    out = tmp_path / "out"
    encode_catalogue(str(static_model_path), written(tmp_path / "c.parquet"), out, settings=SMALL)
    done = encode_catalogue(str(static_model_path), written(tmp_path / "c.parquet", TITLES[:20]), out, settings=SMALL)
    assert (done.encoded, done.kept) == (0, 1)
    assert list(files(out)) == ["part-00000.parquet"]
    assert sorted(p.name for p in out.iterdir()) == [".lock", MANIFEST, "part-00000.parquet"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"partition": 30}, "partition 20, not 30"),
        ({"batch": 32}, "batch 64, not 32"),
        ({"dim": 8}, "dim 16, not 8"),
        ({"precision": "float16"}, "precision float32, not float16"),
        ({"threads": 2}, "threads 1, not 2"),
    ],
)
def test_other_settings_than_the_folders_are_refused(
    static_model_path: Path, tmp_path: Path, other: dict[str, Any], said: str
):
    source, out = written(tmp_path / "c.parquet"), tmp_path / "out"
    encode_catalogue(str(static_model_path), source, out, settings=SMALL)
    before = files(out)
    with pytest.raises(InputError, match=f"was encoded with {said}; give another folder, or remove this one"):
        encode_catalogue(
            str(static_model_path), source, out, settings=EncodeSettings(**{"partition": 20, "threads": 1} | other)
        )
    assert files(out) == before


def test_another_model_is_refused_and_threads_not_asked_for_are_the_folders(
    static_model_path: Path, tiny_model_path: Path, tmp_path: Path
):
    source, out = written(tmp_path / "c.parquet"), tmp_path / "out"
    encode_catalogue(str(static_model_path), source, out, settings=EncodeSettings(partition=20, threads=3))
    assert encode_catalogue(str(static_model_path), source, out, settings=EncodeSettings(partition=20)).kept == 3
    with pytest.raises(InputError, match="was encoded with another model"):
        encode_catalogue(str(tiny_model_path), source, out, settings=EncodeSettings(partition=20))


def test_a_folder_of_parquet_files_is_cut_file_by_file(static_model_path: Path, tmp_path: Path):
    folder = tmp_path / "shop"
    written(folder / "b.parquet", TITLES[:25])
    written(folder / "a" / "a.parquet", [*TITLES[25:30], "", "   "])
    written(folder / "_tmp" / "c.parquet", ["not data"])
    done = encode_catalogue(str(static_model_path), folder, tmp_path / "out", settings=SMALL)
    assert [part.rows for part in done.folder.partitions] == [5, 20, 5]
    hashes = [read_part(tmp_path / "out", number)[1] for number in range(3)]
    assert hashes == [text_hashes(TITLES[25:30]), text_hashes(TITLES[:20]), text_hashes(TITLES[20:25])]


def test_a_folder_is_read_a_partition_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "shop"
    written(folder / "a.parquet")
    monkeypatch.setattr("nestling.serving.encode.partitions.load_catalogue", lambda *_, **__: pytest.fail("loaded"))
    source = open_source(folder, tmp_path / "work", partition=20)
    assert [source.read(part)[1] for part in source.slices] == [TITLES[:20], TITLES[20:40], TITLES[40:]]
    assert not (tmp_path / "work").exists()


def test_columns_with_odd_names_are_taken_as_they_are_called(tmp_path: Path):
    (tmp_path / "shop").mkdir()
    table = pl.DataFrame({"^t.*$": ["red saw"], "*": ["with a case"], "title": ["x"], "text": ["y"]})
    table.write_parquet(tmp_path / "shop" / "a.parquet")
    source = open_source(tmp_path / "shop", tmp_path / "w", partition=9, document=("^t.*$", "*"), document_id="text")
    assert source.read(source.slices[0]) == (["y"], ["red saw\nwith a case"])


def test_rows_without_an_id_get_the_one_that_a_loaded_catalogue_gives_them(static_model_path: Path, tmp_path: Path):
    folder = tmp_path / "shop"
    folder.mkdir()
    pl.DataFrame({"title": TITLES}).write_parquet(folder / "a.parquet")
    found = []
    for source, out in ((folder, "x"), (folder / "a.parquet", "y")):
        encode_catalogue(str(static_model_path), source, tmp_path / out, settings=SMALL)
        found.append([read_part(tmp_path / out, number)[0] for number in range(3)])
    assert found[0] == found[1]
    assert len({each for ids in found[0] for each in ids}) == len(TITLES)


@pytest.mark.parametrize(
    ("name", "document", "said"),
    [
        ("stuff", (), "a.parquet: cannot tell which column is the document; give --document one of: stuff"),
        ("title", ("titel",), "a.parquet: no column 'titel'.*title"),
    ],
)
def test_a_folder_without_the_column_is_one_clear_line(tmp_path: Path, name: str, document: Any, said: str):
    (tmp_path / "shop").mkdir()
    pl.DataFrame({name: ["x"]}).write_parquet(tmp_path / "shop" / "a.parquet")
    with pytest.raises(InputError, match=said):
        open_source(tmp_path / "shop", tmp_path / "w", partition=9, document=document)


def test_a_damaged_file_of_a_folder_is_named(tmp_path: Path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "a.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(InputError, match=r"a\.parquet: no Parquet file"):
        open_source(tmp_path / "shop", tmp_path / "w", partition=9)


def test_bad_settings_and_places_are_one_clear_line(static_model_path: Path, tmp_path: Path):
    source = written(tmp_path / "c.parquet")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    encode = [str(static_model_path), source]
    for what, said in (
        (lambda: EncodeSettings(partition=0), "--partition must be 1 or more, not 0"),
        (lambda: EncodeSettings(precision="int8"), "give float32 or float16"),  # type: ignore[arg-type]
        (lambda: encode_catalogue(*encode, tmp_path / "full"), "holds something else than vectors"),
        (lambda: encode_catalogue(*encode, source), "is a file; give a folder"),
        (lambda: encode_catalogue(*encode, tmp_path / "o", settings=EncodeSettings(dim=17)), "give 1 to 16"),
        (lambda: encode_catalogue(*encode, tmp_path / "o", workers=2), "are for --engine ray"),
    ):
        with pytest.raises(InputError, match=said):
            what()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_two_calls_on_one_folder_are_kept_apart(static_model_path: Path, tmp_path: Path):
    out = tmp_path / "out"
    with (
        locked(out, set(), "encode", "vectors"),
        pytest.raises(InputError, match="another nestling encode works on it"),
    ):
        encode_catalogue(str(static_model_path), written(tmp_path / "c.parquet"), out)


KILLED = """
import os, signal, sys, time
from pathlib import Path
from nestling.progress import Observer
from nestling.serving.encode import ray_engine, worker
from nestling.serving.encode.catalogue import EncodeSettings, encode_catalogue
class Slow(worker.Worker):  # pickled by value, so that it is slow in Ray's processes too
    def encode(self, part):
        time.sleep(0.2)
        return super().encode(part)
ray_engine.Worker = Slow
class Killing(Observer):
    def encoding(self, variant, done, total):
        if done >= 8:
            os.kill(os.getpid(), signal.SIGKILL)
encode_catalogue(sys.argv[1], sys.argv[2], Path(sys.argv[3]), settings=EncodeSettings(partition=4, threads=1),
                 engine=sys.argv[4], address=sys.argv[5] or None, workers=1 if sys.argv[5] else None,
                 observer=Killing())
"""


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_call_killed_in_the_middle_goes_on_with_what_is_missing(
    engine: Any, table_path: Path, tmp_path: Path, request: pytest.FixtureRequest
):
    address = request.getfixturevalue("cluster") if engine == "ray" else ""
    source, out = written(tmp_path / "c.parquet", TITLES[:40]), tmp_path / "out"
    call = [sys.executable, "-c", KILLED, str(table_path), str(source), str(out), engine, address]
    killed = subprocess.run(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=600)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    (out / ".part-00009.1.part.parquet").write_bytes(b"half of a file")
    assert not read_encoded(out).complete
    there = inodes(out)
    chosen = EncodeSettings(partition=4, threads=1)
    done = encode_catalogue(str(table_path), source, out, settings=chosen, engine=engine)
    assert 2 <= done.kept == len(there) < 10
    assert (done.encoded, done.workers) == (10 - done.kept, 2 if engine == "ray" else 1)
    assert there.items() <= inodes(out).items()
    encode_catalogue(str(table_path), source, tmp_path / "at-once", settings=chosen)
    assert files(out) == files(tmp_path / "at-once")
    assert not list(out.glob(".*.parquet"))


def test_ray_gives_the_same_bits_even_where_a_worker_died(
    cluster: str, tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Dying(Worker):
        """Dies without a word at the first partition that any worker gets. Local, so that it is pickled by value."""

        def encode(self, part: Slice) -> tuple[Part, bool]:
            mark = self.out.parent / "died"
            if not mark.exists():
                mark.write_text("")
                os._exit(1)
            return super().encode(part)

    source = written(tmp_path / "c.parquet")
    encode_catalogue(str(tiny_model_path), source, tmp_path / "local", settings=SMALL)
    monkeypatch.setattr(encode_ray, "Worker", Dying)
    # Each worker has to load torch, which takes most of the time.
    done = encode_catalogue(str(tiny_model_path), source, tmp_path / "ray", settings=SMALL, engine="ray", workers=1)
    assert (tmp_path / "died").exists()
    assert (done.encoded, done.kept, done.workers) == (3, 0, 1)
    assert files(tmp_path / "ray") == files(tmp_path / "local")


def test_a_partition_of_which_every_worker_dies_ends_the_call(
    cluster: str, static_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Dying(Worker):
        def encode(self, part: Slice) -> tuple[Part, bool]:
            with (self.out.parent / "tries").open("a") as tries:
                tries.write(".")
            os._exit(1)

    monkeypatch.setattr(encode_ray, "Worker", Dying)
    monkeypatch.setattr(encode_ray, "TRIES", 2)
    source = written(tmp_path / "c.parquet", TITLES[:2])
    with pytest.raises(InputError, match=r"lost its workers .* fewer --workers, or a smaller --partition"):
        encode_catalogue(str(static_model_path), source, tmp_path / "out", settings=SMALL, engine="ray", workers=1)
    assert (tmp_path / "tries").read_text() == ".."


@pytest.mark.parametrize(
    ("changed", "kind", "said"),
    [
        ({"fingerprint": "0" * 16}, InputError, "put the same model under the same name on every machine"),
        ({}, OSError, "Is a directory"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_said_as_if_it_were_here(
    cluster: str, table_path: Path, tmp_path: Path, changed: dict[str, str], kind: type[Exception], said: str
):
    source = open_source(written(tmp_path / "c.parquet"), tmp_path, partition=20)
    (tmp_path / "full" / "part-00000.parquet").mkdir(parents=True)
    encoder = ExportedEncoder.open(table_path)
    recipe = Recipe(changed.get("fingerprint", encoder.fingerprint), "table-fp32", "cpu", 32, "float32", 20, 64, 1)
    worker = Worker(str(table_path), tmp_path / "full", source, recipe)
    with pytest.raises(kind, match=said):
        list(encode_ray.encode_on_ray(worker, source.slices[:1], 1))


def test_a_worker_without_the_folder_says_so(table_path: Path, tmp_path: Path):
    source = open_source(written(tmp_path / "c.parquet"), tmp_path, partition=20)
    fingerprint = ExportedEncoder.open(table_path).fingerprint
    recipe = Recipe(fingerprint, "table-fp32", "cpu", 32, "float32", 20, 64, 1)
    with pytest.raises(InputError, match="give a folder that every machine of the cluster has"):
        Worker(str(table_path), tmp_path / "x", source, recipe).encode(source.slices[0])


@pytest.mark.parametrize(("threads", "device", "room"), [(1, "cpu", 13), (3, "cpu", 3), (2, "cuda", 2)])
def test_a_cluster_has_room_for_workers_by_machine(threads: int, device: str, room: int):
    cluster, recipe = encode_ray.Cluster(((8, 1), (3, 0), (2, 4))), Recipe("", "", "cpu", 32, "float32", 20, 64, 1)
    recipe = replace(recipe, threads=threads, device=device)
    assert cluster.workers(recipe, None, Observer()) == room
    assert cluster.workers(recipe, room + 1, Observer()) == room
    with pytest.raises(InputError, match="which a worker takes"):
        cluster.workers(replace(recipe, threads=9), None, Observer())


def test_an_address_where_no_ray_answers_is_one_clear_line():
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    with pytest.raises(InputError, match="give HOST:PORT of a Ray cluster"):
        encode_ray._check_answers("somewhere")
    closed.close()
    with pytest.raises(InputError, match=f"127.0.0.1:{port}: does not answer"):
        encode_ray._check_answers(f"127.0.0.1:{port}")


def test_without_ray_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(InputError, match=r"pip install 'nestling\[ray\]'"),
        encode_ray.ray_cluster(None, cpus=1),
    ):
        pytest.fail("there is no ray")


def test_torch_gets_the_threads_of_the_recipe_and_then_its_own_back(
    static_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch

    before, seen, encode = torch.get_num_threads(), [], TorchEncoder.encode

    def watched(self: TorchEncoder, texts: list[str]) -> np.ndarray:
        seen.append(torch.get_num_threads())
        return encode(self, texts)

    monkeypatch.setattr(TorchEncoder, "encode", watched)
    chosen = EncodeSettings(threads=before + 1)
    encode_catalogue(str(static_model_path), written(tmp_path / "c.parquet"), tmp_path / "out", settings=chosen)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before

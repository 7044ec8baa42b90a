"""A run's folder: the one rule for what lies where."""

from __future__ import annotations

from pathlib import Path

from nestling.config.run_folder import RunFolder


def test_the_run_of_a_model_is_found_by_where_the_model_lies(tmp_path: Path):
    folder = RunFolder(tmp_path / "demo")
    found = RunFolder.of_model(str(folder.model("graded")))
    assert found is not None
    assert found.path == folder.path
    assert RunFolder.of_model("sentence-transformers/all-MiniLM-L6-v2") is None
    assert RunFolder.of_model(tmp_path / "demo" / "other" / "graded") is None


def test_a_thing_is_done_when_it_was_made_from_just_that_and_its_files_are_there(tmp_path: Path):
    folder = RunFolder(tmp_path)
    assert not folder.is_done("split", "a")
    folder.mark("split", "a")
    folder.mark("model x", "b")
    assert folder.is_done("split", "a", tmp_path)
    assert not folder.is_done("split", "b")
    assert not folder.is_done("split", "a", tmp_path / "gone")
    assert folder.state == {"split": "a", "model x": "b"}

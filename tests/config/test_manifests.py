"""JSON that Nestling wrote is read with its types checked: what does not fit is a line with file and key."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.config.manifests import shaped
from nestling.config.run_folder import STATE, RunFolder
from nestling.errors import InputError
from nestling.models.encoder import SHRUNK, load_shrunk
from nestling.serving.encode.files import MANIFEST, read_encoded


@dataclass(frozen=True)
class Inner:
    count: int
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    inner: Inner
    share: float | None
    pairs: dict[str, tuple[int, str]]
    names: tuple[str, ...] = ()
    more: list[bool] = field(default_factory=list)
    any: Any = None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
OUTER = st.fixed_dictionaries(
    {
        "inner": st.fixed_dictionaries({"count": st.integers(-(2**63) + 1, 2**63 - 1)}, optional={"kind": JSON}) | JSON,
        "share": st.none() | st.floats(allow_nan=False, allow_infinity=False, max_value=1e9, min_value=-1e9) | JSON,
        "pairs": st.dictionaries(st.text(max_size=3), st.tuples(st.integers(0, 9), st.text()).map(list)) | JSON,
    },
    optional={"names": st.lists(st.text(max_size=3)) | JSON, "more": JSON, "any": JSON, "later": JSON},
)


@settings(max_examples=50)
@given(OUTER)
def test_any_json_becomes_the_type_asked_for_or_is_refused_in_one_line(value: dict[str, Any]):
    with suppress(InputError):
        found = shaped(value, Outer, "x.json", "make it anew")
        assert type(found.inner.count) is int
        assert found.inner.kind in ("a", "b")
        assert found.share is None or type(found.share) is float
        assert all(type(size) is int and type(text) is str for size, text in found.pairs.values())
        assert all(type(name) is str for name in found.names)
        assert all(type(each) is bool for each in found.more)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner": {"count": 1.0}}, "x.json: inner.count must be a whole number, not 1.0; make it anew"),
        ({"inner": {}}, "x.json lacks inner.count; make it anew"),
        ({"inner": {"count": 1, "kind": "c"}}, 'x.json: inner.kind must be one of a, b, not "c"; make it anew'),
        ({"share": True}, "x.json: share must be a number, not true; make it anew"),
        ({"share": float("nan")}, "x.json: share must be a number, not NaN; make it anew"),
        ({"pairs": {"k": [1]}}, "x.json: pairs.k must be a list of 2, not [1]; make it anew"),
        ({"names": [None]}, "x.json: names.0 must be text, not null; make it anew"),
    ],
)
def test_the_line_names_file_and_key(change: dict[str, Any], message: str):
    whole = {"inner": {"count": 1}, "share": 1, "pairs": {}}
    assert shaped(whole, Outer, "x.json", "make it anew") == Outer(Inner(1), 1.0, {})
    with pytest.raises(InputError) as raised:
        shaped({**whole, **change}, Outer, "x.json", "make it anew")
    assert str(raised.value) == message


@pytest.mark.parametrize("text", ["[]", "7", '{"split": 1}', '{"split": null}', "{", "[" * 100_000])
def test_a_runs_state_of_another_type_is_a_line(tmp_path: Path, text: str):
    (tmp_path / STATE).write_text(text)
    with pytest.raises(InputError, match=r"state\.json.*; remove .* or choose another --name"):
        RunFolder(tmp_path).is_done("split", "abc")


@pytest.mark.parametrize(
    ("key", "value"), [("partitions", 1), ("partitions", [{"file": "../x"}]), ("recipe", []), ("complete", "yes")]
)
def test_encoded_json_with_a_value_of_another_type_is_a_line(tmp_path: Path, key: str, value: object):
    recipe = {"fingerprint": "f", "runtime": "r", "device": "cpu", "dim": 4, "precision": "float32"}
    recipe |= {"partition": 9, "batch": 1, "threads": 1}
    whole = {"nestling_encoded": 1, "model": "m", "source": "s", "recipe": recipe, "complete": True}
    whole |= {"partitions": [], "versions": {}}
    (tmp_path / MANIFEST).write_text(json.dumps(whole))
    assert read_encoded(tmp_path).rows == 0
    (tmp_path / MANIFEST).write_text(json.dumps({**whole, key: value}))
    with pytest.raises(InputError, match=rf"encoded\.json.* {key}.*; encode it anew"):
        read_encoded(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"dim": 8, "oversampling": "4"}', '{"dim": "8", "oversampling": 0}'])
def test_what_shrink_wrote_with_a_value_of_another_type_is_a_line(tmp_path: Path, text: str):
    (tmp_path / SHRUNK).write_text(text)
    with pytest.raises(InputError, match=r"nestling_shrunk\.json: .* must be .*; shrink the model again"):
        load_shrunk(tmp_path)

"""The names that `import nestling` gives."""

from __future__ import annotations

import pytest

import nestling


def test_the_public_names_can_all_be_had():
    assert all(getattr(nestling, name) is not None for name in nestling.__all__)
    assert set(nestling.__all__) <= set(dir(nestling))
    with pytest.raises(AttributeError, match="no attribute 'sing'"):
        _ = nestling.sing

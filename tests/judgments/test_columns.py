"""What is said of columns."""

from __future__ import annotations

from nestling.judgments.columns import listed


def test_names_in_messages_are_printable_and_few() -> None:
    assert listed(["a\nb", "", "x" * 90]) == f"a?b, '', {'x' * 40}"
    assert listed([str(i) for i in range(25)]).endswith("19 and 5 more")

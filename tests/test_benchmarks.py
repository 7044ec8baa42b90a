"""What the benchmarks conclude from their figures."""

from __future__ import annotations

import pytest

from fixtures.places import ROOT


@pytest.mark.parametrize(
    ("ratios", "recall", "expected"),
    [
        # On a CPU without bf16: nothing that helps, then something that does, then something that costs recall.
        ({"torch-bf16": [0.45, 0.5]}, {"torch-bf16": 0.7}, "stock"),
        (
            {"torch-bf16": [0.45, 0.5], "openvino-fp32": [1.2, 1.3]},
            {"torch-bf16": 0.7, "openvino-fp32": 0.7},
            "openvino-fp32",
        ),
        (
            {"openvino-int8": [2.5, 2.6], "openvino-fp32": [1.2, 3.0]},
            {"openvino-int8": 0.69, "openvino-fp32": 0.699},
            "openvino-fp32",
        ),
    ],
)
def test_the_fastest_at_unchanged_recall_may_be_stock(
    monkeypatch: pytest.MonkeyPatch, ratios: dict[str, list[float]], recall: dict[str, float], expected: str
):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import encoding

    assert encoding.best_of({"stock": [1.0, 1.0], **ratios}, {"stock": 0.7, **recall}) == expected

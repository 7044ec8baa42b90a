"""The cheapest search that meets the target: an inverted file, all codes, or whole vectors; and how far it looks."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling.progress import Observer
from nestling.retrieval.codec import Codec, Codes
from nestling.retrieval.exact_search import rescore, top_k
from nestling.serving.index import files
from nestling.serving.index.shortlist import Exact, Inverted, build_inverted, encode

logger = logging.getLogger(__name__)

TOP = 10
LENGTHS = (50, 100, 200, 400, 800, 1_600, 2_400, 3_200, 4_800, 6_400, 9_600, 12_800, 25_600)
SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 1.0)
SAME = 1e-6
"""Scores that differ by less are equal but for the order of their terms."""


@dataclass(frozen=True)
class Calibrated:
    """Length of the shortlist, lists to look into (0 without an inverted file), and the share of the top 10 found."""

    shortlist: int
    lists: int
    agreement: float


def write_shortlist(
    folder: Path,
    vectors: NDArray[np.float16],
    codec: Codec,
    queries: NDArray[np.float32],
    *,
    inverted: bool,
    target: float,
    observer: Observer,
) -> tuple[Codec, Calibrated, str]:
    """Write the first of an inverted file, all codes and whole vectors to meet the target; return it and a warning."""
    missed = []
    ways = [("all codes", codec, False), ("whole vectors", Codec("float16", vectors.shape[1]), False)]
    if inverted:
        ways.insert(0, ("an inverted file", codec, True))
    for name, codec, is_inverted in ways:
        exact = _write_codes(folder, vectors, codec)
        file = None
        if is_inverted:
            observer.stage("inverted file", f"{len(vectors):,} documents")
            file = build_inverted(vectors, exact, folder / files.INVERTED)
        observer.stage("choose the shortlist's length")
        chosen = calibrate(queries, vectors, exact, file, target=target)
        if chosen.agreement >= target:
            break
        (folder / files.INVERTED).unlink(missing_ok=True)
        way = name if is_inverted else f"{codec.dim} dims of {codec.precision}, all scanned,"
        missed.append(f"{way} found {chosen.agreement:.1%}")
    if not missed:
        return codec, chosen, ""
    warning = (
        f"{' and '.join(missed)} of the exact top 10 where the target is {target:.1%}, so a search scans {name}, which "
        "is slower and takes more memory; a lower --target allows the other"
    )
    observer.note(f"warning: {warning}")
    logger.warning("index %s: %s", folder.parent, warning)
    return codec, chosen, warning


def _write_codes(folder: Path, vectors: NDArray[np.float16], codec: Codec) -> Exact:
    """Write a codec and its codes, made of the vectors as they are stored, so that updates change none."""
    codec.save(folder / files.CODEC)
    (folder / files.SCALES).unlink(missing_ok=True)
    codes = encode(vectors, codec)
    np.save(folder / files.CODES, codes.data)
    if codes.scales is not None:
        np.save(folder / files.SCALES, codes.scales)
    return Exact(codec, codes)


def calibrate(
    queries: NDArray[np.float32], vectors: Any, exact: Exact, inverted: Inverted | None, *, target: float
) -> Calibrated:
    """Choose the cheapest search that finds `target` of the exact top 10 of (n, full) queries.

    First the length, with all codes scanned, so that half of what may be missed is missed there; then the lists.
    """
    whole = Codec("float16", vectors.shape[1])
    rows, best = top_k(queries, Codes(vectors, None, whole.fingerprint), TOP, whole)
    # By scores, as of equal documents at the tenth place one is as good as the other.
    least = best.min(axis=1, keepdims=True) - SAME

    def agreement(candidates: NDArray[np.int64]) -> float:
        _, scores = rescore(queries, candidates, vectors, best.shape[1])
        return float((scores >= least).sum() / best.size)

    share = target if inverted is None else (1 + target) / 2
    lengths = [min(len(vectors), length) for length in LENGTHS]
    candidates = exact.candidates(queries, lengths[-1])
    places = np.concatenate([np.flatnonzero(np.isin(*each)) for each in zip(candidates, rows, strict=True)])
    shortlist = next((length for length in lengths if (places < length).sum() / rows.size >= share), lengths[-1])
    if inverted is None:
        return Calibrated(shortlist, 0, agreement(candidates[:, :shortlist]))
    for part in SHARES:
        lists = max(1, round(inverted.lists * part))
        chosen = Calibrated(shortlist, lists, agreement(inverted.candidates(queries, shortlist, None, lists)))
        if chosen.agreement >= target:
            break
    return chosen

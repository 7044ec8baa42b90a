"""A table of word pieces, to be joined with a transformer, trained by what a cross-encoder made of candidates."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nestling.evaluation.embed import embed
from nestling.training.candidates import Candidates
from nestling.training.lexical import SHARE
from nestling.training.losses import SCALE
from nestling.training.tokens import TokenStore

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

RATE = 2e-4
"""Learning rate, times the mean length of a row."""
BATCH = 64
HELD = 8
"""One query of so many is held out, to tell whether the training is worth anything."""


class Bags:
    """The word pieces of texts, and their sums in a table as a joined model takes them (lexical.py)."""

    def __init__(self, model: SentenceTransformer, texts: Sequence[str]) -> None:
        self.store = TokenStore.build(texts, model.tokenizer, model.max_seq_length or None)
        self.special = torch.tensor(model.tokenizer.all_special_ids)
        self.device = model.device

    def sums(self, numbers: NDArray[np.int64], rows: Tensor) -> Tensor:
        """Return the sum of the pieces' rows over the root of their number, (len(numbers), dim).

        Special tokens are counted and have no rows.
        """
        batch = self.store.batch(numbers)
        counted = batch["attention_mask"].masked_fill(torch.isin(batch["input_ids"], self.special), 0)
        ids, mask = batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)
        total = F.embedding_bag(ids, rows, mode="sum", per_sample_weights=counted.to(self.device, rows.dtype))
        return total / mask.sum(dim=1, keepdim=True).clamp(min=1).sqrt()


def teach_table(
    transformer: SentenceTransformer,
    table: SentenceTransformer,
    queries: Sequence[str],
    documents: Sequence[str],
    candidates: Candidates,
    *,
    scale: float = SCALE,
    groups: int = 0,
    seed: int = 0,
) -> bool:
    r"""Train the rows of a table, in place, so that the two joined rank candidates as their teacher does.

    The transformer stays as it is, so its vectors are computed once. With the cosines c of the two side by side, as
    `lexical.join` puts them, and the teacher's scores t, Adam brings

    .. math:: \mathrm{KL}(\mathrm{softmax}(t) \,\|\, \mathrm{softmax}(s c))

    over the candidates of each query down, once through the queries.

    Args:
        transformer: with its pooling; what the table will be joined with.
        table: a static model with the same pieces.
        queries: (n_queries,) texts, the raters' and invented ones. With the raters' alone nothing is gained: on 1,753
            queries of Home Depot's dev side MRR@10 rises from .5597 to .5605, with two more for each of them to .5638.
        documents: the training documents.
        candidates: of those queries, with logits.
        scale: of cosines, s above and in the teacher's scores.
        groups: queries whose numbers are equal modulo this are held out together, as a query and its variation are
            nearly the same; 0 for none.
        seed: of the order.

    Returns:
        whether the divergence fell on the queries that were held out; the table is as it was where it did not.
    """
    from sentence_transformers import SentenceTransformer

    device = transformer.device
    taught = torch.from_numpy(candidates.judged_by_both(scale)).to(device)
    # Without the prompts that it may have: a joined model has none.
    plain = SentenceTransformer(modules=list(transformer), device=str(device))
    found = embed(plain, queries, kind="query"), embed(plain, documents, kind="document")
    vectors = [torch.from_numpy(each).to(device) for each in found]
    bags = [Bags(transformer, texts) for texts in (queries, documents)]
    given = table[0].embedding.weight
    start = given.detach().to(device, torch.float32, copy=True)
    some = np.arange(0, len(documents), max(1, len(documents) // 4096))
    longer = SHARE**0.5 / max(float(bags[1].sums(some, start).norm(dim=1).mean()), 1e-6)
    rows = (start * longer).requires_grad_()

    def divergence(numbers: NDArray[np.int64]) -> Tensor:
        asked = candidates.documents[numbers]
        distinct, places = np.unique(asked, return_inverse=True)
        q, d = (
            F.normalize(torch.cat([vector[torch.from_numpy(which).to(device)], bag.sums(which, rows)], dim=1), dim=1)
            for vector, bag, which in zip(vectors, bags, (numbers, distinct), strict=True)
        )
        cosines = torch.einsum("qd,qkd->qk", q, d[torch.from_numpy(places.reshape(asked.shape)).to(device)])
        wanted = F.softmax(taught[torch.from_numpy(numbers).to(device)], dim=1)
        return F.kl_div(F.log_softmax(scale * cosines, dim=1), wanted, reduction="batchmean")

    order = np.random.default_rng(seed).permutation(len(queries))
    group = order % groups if groups else order
    held, rest = order[group % HELD == 0], order[group % HELD != 0]
    steps = len(rest) // BATCH
    if not steps or not len(held):
        return False

    def of_held() -> float:
        with torch.no_grad():
            parts = [held[at : at + BATCH] for at in range(0, len(held), BATCH)]
            return float(sum(float(divergence(part)) * len(part) for part in parts) / len(held))

    before = of_held()
    optimizer = torch.optim.Adam([rows], lr=RATE * float(rows.detach().norm(dim=1).mean()))
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / steps, total_iters=steps)
    for step in range(steps):
        optimizer.zero_grad()
        divergence(rest[step * BATCH : (step + 1) * BATCH]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
    after = of_held()
    logger.info("the table's divergence from its teacher, on queries held out: %.4f -> %.4f", before, after)
    if not after < before:
        return False
    with torch.no_grad():
        given.copy_(rows / longer)
    return True

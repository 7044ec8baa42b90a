"""The recipes: a name -> the examples that a variant trains on and its loss. The one place where they are listed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nestling.config.names import PRETRAINED
from nestling.config.recipes import RECIPE_DEFAULTS
from nestling.errors import InputError
from nestling.evaluation.qrels import Qrels
from nestling.judgments.table import Judgments
from nestling.models.load import load_model, no_bars
from nestling.models.torch_encoder import embed
from nestling.retrieval.rotation import add_rotation, fit_search_rotation
from nestling.training.recipes import contrastive, scored
from nestling.training.recipes.adapter import adapter, with_adapter
from nestling.training.recipes.static import build_static
from nestling.training.spec import Job, Material

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from nestling.training.distill.cross_encoder import RerankEvaluator

ROTATED_BY = 2048
"""Queries, and documents, that a rotation before the training is fitted on, evenly spaced, at most."""


def texts(judgments: Judgments) -> tuple[list[str], list[str]]:
    """Return the distinct queries and documents of a table, each in the order of its first record.

    Always in the same order: which of them are sampled depends on it.
    """
    queries, documents = (judgments.frame[side].unique(maintain_order=True).to_list() for side in ("query", "document"))
    return queries, documents


def transformer(judgments: Judgments, job: Job) -> SentenceTransformer:
    """Return the base model with the dropout and the length limit of the settings.

    Where prefixes are trained and unless `rotate_first` says otherwise, a linear layer at its end turns it by the
    queries' axes, and is trained with it: a prefix then starts with what matters most. On dev of 25,000 Home Depot
    titles, `mnrl+matryoshka`, recall@10 at 384, 192, 96 and 48 dims: .822 .794 .766 .709 without, .835 .825 .794 .740
    with it; turned again after the training .822 .817 .786 .725 and .835 .829 .798 .746.
    """
    model = _base(job)
    if _rotates_first(job):
        queries, documents = (some[:: -(-len(some) // ROTATED_BY)] for some in texts(judgments))
        with no_bars():
            add_rotation(
                model,
                fit_search_rotation(embed(model, queries, kind="query"), embed(model, documents, kind="document")),
            )
    return model


def _rotates_first(job: Job) -> bool:
    wanted = job.settings.rotate_first
    return bool(job.matryoshka) and (job.settings.fast if wanted is None else wanted)


def _base(job: Job) -> SentenceTransformer:
    settings = job.settings
    model = load_model(job.base, attention_dropout=settings.attention_dropout, hidden_dropout=settings.hidden_dropout)
    if settings.max_seq_length:
        model.max_seq_length = settings.max_seq_length
    return model


def word_pieces(judgments: Judgments, job: Job) -> SentenceTransformer:
    """Return a table of word-piece vectors made of the base model and the training texts."""
    queries, documents = texts(judgments)
    return build_static(job.base, [*queries, *documents])


def frozen_base(judgments: Judgments, job: Job) -> SentenceTransformer:
    """Return the base model with all its weights frozen, and a linear layer on top to train."""
    return with_adapter(_base(job))


def cross_encoder(judgments: Judgments, job: Job) -> SentenceTransformer:
    """Return the base's transformer as a cross-encoder that has learnt nothing yet."""
    from nestling.training.distill.cross_encoder import with_head

    return with_head(_base(job), seed=job.settings.seed)


def _pairs_read_together(judgments: Judgments, job: Job, model: SentenceTransformer) -> Material:
    from nestling.training.distill.cross_encoder import prepare

    return prepare(judgments, job, model)


def _reranking(qrels: Qrels, job: Job) -> RerankEvaluator:
    from nestling.training.distill.candidates import Candidates
    from nestling.training.distill.cross_encoder import RerankEvaluator

    candidates = Candidates.load(job.candidate_file("dev"))
    return RerankEvaluator(qrels, candidates, scale=job.settings.scale, precision=job.settings.precision)


@dataclass(frozen=True)
class Recipe:
    """How a variant is trained.

    Attributes:
        prepare: (train split, job, model) -> data, loss and batches.
        summary: one line for a person.
        build: (train split, job) -> the model to train.
        defaults: training settings that this recipe needs other than the general ones. A variant's own settings
            stand above them, an experiment's for all variants below.
        evaluator: (qrels of dev, job) -> what measures the model there; None for recall and MRR of its embeddings.
        teachable: whether its data can hold candidates that a cross-encoder has read.
        check: raises InputError where the judgments are none that it can learn from; called before anything is made.
    """

    prepare: Callable[[Judgments, Job, SentenceTransformer], Material]
    summary: str
    build: Callable[[Judgments, Job], SentenceTransformer] = transformer
    defaults: Mapping[str, Any] = field(default_factory=dict)
    evaluator: Callable[[Qrels, Job], RerankEvaluator] | None = None
    teachable: bool = False
    check: Callable[[Judgments], None] = lambda _: None

    def is_taught(self, job: Job) -> bool:
        """Return whether a job of this recipe has a cross-encoder for a teacher."""
        # The one recipe that may leave its batches and its loss to the library.
        stock = self.prepare is contrastive.mnrl and not job.settings.fast
        return self.teachable and not stock and job.settings.cross_encoder > 0 and job.candidates is None

    @property
    def trains_transformer(self) -> bool:
        """Return whether what is trained is the base model itself."""
        return self.build is transformer

    def starts_as_base(self, job: Job) -> bool:
        """Return whether the untrained model embeds as the base does when it is loaded by itself."""
        return self.trains_transformer and job.settings.max_seq_length is None and not _rotates_first(job)


RECIPES: dict[str, Recipe] = {
    "graded": Recipe(
        contrastive.graded,
        "InfoNCE with all relevant documents of the batch as positives weighted by score, documents judged low and "
        "documents alike as hard negatives, queries made of documents, and BM25 as a teacher; joined with a table of "
        "word pieces",
        defaults=RECIPE_DEFAULTS["graded"],
        teachable=True,
    ),
    "distilled": Recipe(
        contrastive.graded,
        "graded, then taught by a cross-encoder that is trained on the same judgments: several times as long",
        defaults=RECIPE_DEFAULTS["distilled"],
        teachable=True,
    ),
    "mnrl": Recipe(
        contrastive.mnrl,
        "multiple negatives ranking (InfoNCE) on the pairs above the threshold, other documents as negatives",
        teachable=True,
    ),
    "static": Recipe(
        contrastive.generous,
        "a table of word-piece vectors in place of the transformer, trained like mnrl: a hundredth of the cost to run",
        build=word_pieces,
        defaults=RECIPE_DEFAULTS["static"],
    ),
    "adapter": Recipe(
        adapter,
        "a linear layer on the frozen base model, trained like mnrl on vectors computed once: seconds on a CPU",
        build=frozen_base,
        defaults=RECIPE_DEFAULTS["adapter"],
    ),
    "cosine": Recipe(
        scored.cosine,
        "squared error between cosine and score, all pairs, scores scaled to 0..1",
        check=scored.check_scores_differ,
    ),
    "cosent": Recipe(
        scored.cosent,
        "CoSENT: cosines in the order of the scores, all pairs, scores scaled to 0..1",
        check=scored.check_scores_differ,
    ),
}

PARTS: dict[str, Recipe] = {
    "cross-encoder": Recipe(
        _pairs_read_together,
        "reads query and document together; the teacher of others",
        build=cross_encoder,
        evaluator=_reranking,
    ),
}
"""Trainings within those of a recipe; nobody asks for them by name."""


def find_recipe(name: str) -> Recipe:
    """Return the recipe of that name.

    Raises:
        InputError: there is none.
    """
    found = RECIPES.get(name) or PARTS.get(name)
    if found is None:
        raise InputError(f"unknown recipe {name!r}; choose {', '.join([PRETRAINED, *RECIPES])}")
    return found

"""Concatenate a transformer with a table of word-piece vectors, so that exact words count in the embedding.

The transformer's vector and the sum of the pieces' vectors in a table are put side by side, and a linear layer brings
them to the model's own size. The idea is that of CLEAR (Gao et al. 2021, arXiv 2004.13969) and SPAR (Chen et al. 2022,
arXiv 2110.06918), which concatenate a dense vector and one that stands for a lexical retriever. The two are trained
apart: together they learn the training pairs by heart. All modules are sentence-transformers' own, so that any tool
which loads its folders loads this one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding, WordEmbeddings

from nestling.config.recipes import RECIPES
from nestling.config.training import ConcatStatic, TrainingSettings
from nestling.errors import InputError
from nestling.models.load import load_model, prompts_of
from nestling.retrieval.rotation import append_linear, fit_search_rotation
from nestling.retrieval.trained_rotation import train_search_rotation
from nestling.retrieval.vectors import truncate
from nestling.training.dev import Vectors
from nestling.training.result import RECALL
from nestling.training.steps import rotate
from nestling.training.steps.context import MODEL, Context, StepResult
from nestling.training.steps.finetune import Trainee, train
from nestling.training.steps.guard import Figures, Guard, choose

SEMANTIC = "transformer_embedding"
"""The key of the transformer's vector in the features of a batch while the lexical one is made."""
SHARES = (0.7, 0.3)
"""Weights of the table's cosine against the transformer's, the preferred first."""
TABLE_STEP = "the table of word pieces"


def concat_static(step: ConcatStatic, context: Context) -> StepResult:
    """Train a table, and concatenate it with the model at the weight that dev prefers, where dev is not lower for it.

    The table is made of the base: made of the trained transformer it is better by itself, and adds less to it.
    """
    settings = TrainingSettings.model_validate({**RECIPES["static"].defaults, "seed": context.spec.settings.seed})
    spec = replace(context.spec, recipe="static", settings=settings, matryoshka=context.sizes)
    of_table = context.aside("table", spec)
    trained = train(of_table, Trainee.of(spec))

    def make(guard: Guard) -> SentenceTransformer | None:
        evaluator, sizes = context.evaluator, context.sizes
        both = side_by_side(load_model(str(context.model)), load_model(str(of_table.folder / MODEL)))
        dev, fitted = evaluator.vectors(both), rotate.embedded(both, context)
        alone = _alone(dev, fitted, context, device=both.device)
        scales = [scale_for(fitted[1], share) for share in SHARES]
        options = []
        for scale in scales:
            axes = fit_search_rotation(*scaled(fitted, scale))[:, : sizes[0]]
            options.append(evaluator.of_vectors(rotate.rotated_sides(scaled(dev, scale), axes)))
        place = guard.keep(TABLE_STEP, options, alone[:1])
        if place is None:
            return None
        axes = train_search_rotation(*scaled(fitted, scales[place]), size=sizes[0], dims=sizes, device=both.device)
        figures = evaluator.of_vectors(rotate.rotated_sides(scaled(dev, scales[place]), axes), sizes)
        if guard.keep(TABLE_STEP, [figures], alone) is None:
            return None
        context.say(
            f"concatenated: dev recall@10 of the transformer {alone[0, 0].mean():.4f}, of the table "
            f"{trained.after[RECALL]:.4f}, of both {figures[0, 0].mean():.4f}"
        )
        return reduced(both, scales[place], axes)

    return context.finish(make, table=trained)


def _alone(dev: Vectors, fitted: Vectors, context: Context, *, device: torch.device) -> Figures:
    """Return the figures of the transformer alone, of which the first halves are, rotated where that helps it."""
    sizes = context.sizes
    dev, fitted = ((truncate(each[0], sizes[0]), truncate(each[1], sizes[0])) for each in (dev, fitted))
    plain = context.evaluator.of_vectors(dev, sizes)
    if context.spec.settings.rotate is None or len(sizes) == 1:
        return plain
    _, with_rotation = rotate.trained(dev, fitted, plain, context, device=device)
    return plain if choose([with_rotation], plain) is None else with_rotation


def side_by_side(model: SentenceTransformer, table: SentenceTransformer) -> SentenceTransformer:
    """Return a model of twice the size: a text's vector by the transformer, at length 1, then that by the table.

    The latter is the sum of the pieces' vectors over the root of their number, so that it is about as long for a short
    text as for a long one. The transformer's modules are taken over, not copied. Raise InputError where the two do not
    have the same pieces and size.
    """
    full = int(model.get_embedding_dimension() or 0)
    if not isinstance(table[0], StaticEmbedding) or isinstance(model[0], StaticEmbedding):
        raise InputError("a table of word pieces can only be joined with a transformer")
    rows = table[0].embedding.weight.detach().clone()
    if rows.shape[1] != full or table[0].tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise InputError(
            "table and transformer differ in size or vocabulary; make the table from the transformer's base"
        )
    # What every text holds says nothing of one: special tokens, and the pieces of the prompts.
    prompts = [prompt for prompt in prompts_of(model).values() if prompt]
    rows[[*model.tokenizer.all_special_ids, *(id for text in prompts for id in model.tokenizer(text)["input_ids"])]] = 0
    both = SentenceTransformer(
        modules=[
            *model,
            Normalize(module_output_name=SEMANTIC),
            WordEmbeddings(model.tokenizer, rows, update_embeddings=False),
            # Pooling puts what it finds as the text's own vector before what it makes of the tokens.
            Normalize(SEMANTIC, "cls_token_embeddings"),
            Pooling(full, ("cls", "mean_sqrt_len_tokens")),
        ],
        prompts=model.prompts,
        default_prompt_name=model.default_prompt_name,
        device=str(model.device),
    )
    both.max_seq_length = model.max_seq_length
    return both


def scale_for(documents: NDArray[np.float32], share: float) -> float:
    """Return the factor that makes the second halves' mean length the root of `share` where the first halves' is 1."""
    first, second = (np.linalg.norm(half, axis=1) for half in np.hsplit(documents, 2))
    return float(share**0.5 / max(float((second / first).mean()), 1e-6))


def scaled(vectors: Vectors, scale: float) -> Vectors:
    """Return the vectors with their second halves multiplied by `scale`, at length 1, the same shapes."""
    halves = [np.hsplit(side, 2) for side in vectors]
    queries, documents = (np.hstack([first, second * np.float32(scale)]) for first, second in halves)
    return truncate(queries, queries.shape[1]), truncate(documents, documents.shape[1])


def reduced(both: SentenceTransformer, scale: float, axes: NDArray[np.float32]) -> SentenceTransformer:
    """Return what `side_by_side` made, with the second half multiplied by `scale` and brought to `axes`, in place.

    Its cosines are about the weighted mean of the two models' cosines. The axes, (2 * full, full), are orthonormal.
    """
    words = next(module for module in reversed(list(both)) if isinstance(module, WordEmbeddings))
    with torch.no_grad():
        words.emb_layer.weight.mul_(scale)
    append_linear(both, axes)
    both.append(Normalize())
    return both

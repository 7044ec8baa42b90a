"""CUDA graphs of a model's passes, captured once for each shape of batch.

A CUDA graph launches all kernels of a forward or a backward pass at once, where launching each takes longer than it
runs. It is bound to a shape and to places in memory, so batches are padded up to few shapes, and gradients are added to
buffers that are the parameters' own; torch's `make_graphed_callables` has gradients of its own for every shape.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from torch import Tensor

from nestling.training.batches.tokens import pools_prompts
from nestling.training.fast.mixed_precision import embed_cast

logger = logging.getLogger(__name__)

MOST_SHAPES = 64
"""Shapes to capture for each column, the first that are met; batches of others are computed as they come."""
FINEST = 8
"""Sizes up to 64 are rounded up to a multiple of this, larger ones to a multiple of a larger power of two."""


def can_capture(model: SentenceTransformer) -> bool:
    """Return whether a model's passes may be captured: on the only GPU, by an attention of torch's own."""
    if model.device.type != "cuda" or torch.cuda.device_count() != 1:
        return False
    # One tensor under two names would be given to one module only.
    tied = len(list(model.named_parameters(remove_duplicate=False))) > len(list(model.parameters()))
    return (
        not tied
        and pools_prompts(model)
        and getattr(model[0].model.config, "_attn_implementation", "") in ("sdpa", "eager")
    )


class Capture(Protocol):
    """The passes of one shape of batch."""

    def forward(self, column: dict[str, Tensor]) -> Tensor:
        """Return (n_texts, dim) float32 for `input_ids` and `attention_mask`; it holds until the next call."""

    def backward(self, gradient: Tensor) -> None:
        """Add the parameters' gradients to their buffers, given that of what `forward` returned last."""


Embed = Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]
"""(column, parameters by name) -> (n_texts, dim) float32; parameters not named are the model's own."""
MakeCapture = Callable[[Embed, dict[str, Tensor], list[Tensor], dict[str, Tensor], "GraphMemory | None"], Capture]


class GraphEncoder:
    """Embeds the columns of a training's batches: one call for a batch, then its backward pass, then the next call.

    Where a capture fails, all further batches are computed as they come. Capture draws from the generator of dropout,
    and a resumed training counts shapes anew: with dropout it draws other masks than it would have.

    Args:
        model: on one GPU; its parameters must keep their places in memory.
        make_capture: takes, beside a column of the shape, the memory that all captures of such columns share, if any.
    """

    def __init__(self, model: SentenceTransformer, dtype: torch.dtype, make_capture: MakeCapture | None = None) -> None:
        self.model = model
        self.dtype = dtype
        self.make_capture = make_capture or CapturedGraph
        self.padding = int(getattr(model.tokenizer, "pad_token_id", 0) or 0)
        self.widest = model.max_seq_length
        self.parameters: dict[str, Tensor] = {}
        self.buffers: list[Tensor] = []
        self.captures: dict[tuple[int, int, int], Capture] = {}
        self.memory: dict[int, GraphMemory | None] = {}
        self.failed = False

    def __call__(self, columns: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """Return the embeddings, (n_texts, dim) float32, of columns as `embed_cast` takes them."""
        if self.failed or not self.model.training:
            return embed_cast(self.model, columns, self.dtype)
        return [self._embedded(place, column) for place, column in enumerate(columns)]

    def _embedded(self, place: int, column: dict[str, Tensor]) -> Tensor:
        n_texts = len(column["input_ids"])
        column = padded(column, self.padding, widest=self.widest)
        rows, width = column["input_ids"].shape
        key = (place, rows, width)
        room = sum(each[0] == place for each in self.captures) < MOST_SHAPES
        # At once: computed as it comes, a batch would want as much memory again beside that of the captures.
        if key not in self.captures and room and not self.failed:
            self._capture(key, column)
        if key not in self.captures:
            return self._embed(column)[:n_texts]
        # Something must want a gradient for the backward pass to come by; the parameters get theirs on the way.
        anchor = torch.ones((), requires_grad=True)
        embeddings: Tensor = _CapturedPass.apply(anchor, self, self.captures[key], column)  # type: ignore[no-untyped-call]
        return embeddings[:n_texts]

    def _capture(self, key: tuple[int, int, int], column: dict[str, Tensor]) -> None:
        place = key[0]
        try:
            if not self.buffers:
                self._make_buffers(column)
            if place not in self.memory:
                self.memory[place] = GraphMemory(self._stream()) if torch.cuda.is_available() else None
            memory = self.memory[place]
            self.captures[key] = self.make_capture(self._embed, self.parameters, self.buffers, column, memory)
        except RuntimeError as error:
            logger.warning("the model's passes cannot be captured as CUDA graphs, training goes on without: %s", error)
            self.failed = True
            # What memory they hold may be what was wanting.
            self.captures.clear()
            self.memory.clear()

    def _stream(self) -> torch.cuda.Stream:
        # One for all, as libraries want memory of their own for every stream.
        others = [each.stream for each in self.memory.values() if each is not None]
        return others[0] if others else torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def _make_buffers(self, column: dict[str, Tensor]) -> None:
        every = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        embeddings = self._embed(column)
        ones = torch.ones_like(embeddings)
        gradients = torch.autograd.grad(embeddings, list(every.values()), ones, allow_unused=True)
        # A pooler that nothing reads has none and must not get one: an optimizer would decay its weights.
        self.parameters = {
            name: each for (name, each), gradient in zip(every.items(), gradients, strict=True) if gradient is not None
        }
        self.buffers = [torch.zeros_like(each) for each in self.parameters.values()]

    def _embed(self, column: dict[str, Tensor], parameters: dict[str, Tensor] | None = None) -> Tensor:
        weights = {**dict(self.model.named_parameters()), **(parameters or {})}
        return embed_cast(self.model, [column], self.dtype, weights)[0]

    def own_gradients(self) -> None:
        """Make the buffers the parameters' gradients, with what those are, where a trainer let go of them."""
        if next(iter(self.parameters.values())).grad is self.buffers[0]:
            return
        torch._foreach_zero_(self.buffers)
        for parameter, buffer in zip(self.parameters.values(), self.buffers, strict=True):
            if parameter.grad is not None:
                buffer.copy_(parameter.grad)
            parameter.grad = buffer


class GraphMemory:
    """Memory that captures share which are never needed at the same time, and the stream that it belongs to."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.id = torch.cuda.graph_pool_handle()
        self.stream = stream
        # The first graph makes the pool, and keeps it for passes that no graph holds.
        self.keeper = torch.cuda.CUDAGraph()
        with self.capturing(self.keeper):
            torch.zeros(1, device="cuda")

    def capturing(self, graph: torch.cuda.CUDAGraph) -> torch.cuda.graph:
        """Return the context in which a graph is captured in this memory."""
        # Other threads may pin memory meanwhile.
        return torch.cuda.graph(graph, pool=self.id, stream=self.stream, capture_error_mode="thread_local")

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Compute at once in this memory, which must be free again in the end."""
        self.stream.wait_stream(torch.cuda.current_stream())
        # Of a pool no more than its id is asked for, but for torch before 2.8, which wants one of its own.
        own = hasattr(torch.cuda, "MemPoolContext")
        here = contextlib.nullcontext() if own else torch.cuda.use_mem_pool(cast("torch.cuda.MemPool", self))
        with torch.cuda.stream(self.stream), here:
            yield
        torch.cuda.current_stream().wait_stream(self.stream)


class CapturedGraph:
    """Two CUDA graphs: a forward pass, and the backward pass that belongs to it. See Capture."""

    def __init__(
        self, embed: Embed, parameters: dict[str, Tensor], buffers: list[Tensor], column: dict[str, Tensor], memory: Any
    ) -> None:
        self.column = {name: value.clone() for name, value in column.items()}
        # One masked token at the least, as the next batch may have some: without any, attention takes another kernel.
        self.column["attention_mask"][-1, -1] = 0
        before = torch.cuda.current_stream()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        spare = generator.clone_state()
        try:
            # Both are left as they were during the capture where it fails. In one thread, since only its memory is
            # that of the captures; another one's libraries would want memory of their own, too.
            with torch.cuda.stream(before), torch.autograd.set_multithreading_enabled(False):
                self._capture(embed, parameters, buffers, memory)
        except RuntimeError:
            generator.graphsafe_set_state(spare)
            raise

    def _capture(self, embed: Embed, parameters: dict[str, Tensor], buffers: list[Tensor], memory: GraphMemory) -> None:
        # Once beforehand, since libraries set themselves up at their first call.
        with memory.in_use():
            aliases = aliased(parameters)
            embeddings = embed(self.column, aliases)
            torch.autograd.grad(embeddings, list(aliases.values()), torch.ones_like(embeddings))
            del embeddings, aliases
        self.forwards, self.backwards = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        aliases = aliased(parameters, buffers)
        with memory.capturing(self.forwards):
            embeddings = embed(self.column, aliases)
        self.gradient = torch.zeros_like(embeddings)
        with memory.capturing(self.backwards):
            torch.autograd.backward(embeddings, self.gradient)
        self.embeddings = embeddings.detach()

    def forward(self, column: dict[str, Tensor]) -> Tensor:
        for name, value in self.column.items():
            value.copy_(column[name])
        self.forwards.replay()
        return self.embeddings.detach()

    def backward(self, gradient: Tensor) -> None:
        self.gradient.copy_(gradient)
        self.backwards.replay()


class _CapturedPass(torch.autograd.Function):
    """A captured forward pass in autograd's graph, with its captured backward pass."""

    @staticmethod
    def forward(
        context: Any, anchor: Tensor, encoder: GraphEncoder, capture: Capture, column: dict[str, Tensor]
    ) -> Tensor:
        context.encoder, context.capture = encoder, capture
        return capture.forward(column)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[None, None, None, None]:
        context.encoder.own_gradients()
        context.capture.backward(gradient)
        return None, None, None, None


def aliased(parameters: dict[str, Tensor], buffers: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
    """Return leaves of their own in the parameters' memory, whose gradients are added to `buffers`.

    Where autograd has met a parameter before, on another stream, it waits for that stream, which ends a capture.
    """
    leaves = {name: each.detach().requires_grad_() for name, each in parameters.items()}
    for leaf, buffer in zip(leaves.values(), buffers or (), strict=buffers is not None):
        leaf.grad = buffer
    return leaves


def padded(column: dict[str, Tensor], padding: int, *, widest: int | None = None) -> dict[str, Tensor]:
    """Return a column padded to a size that comes often, to `widest` at most; further texts are a single `padding`."""
    ids, mask = column["input_ids"], column["attention_mask"]
    n_texts, width = ids.shape
    rows, columns = rounded(n_texts) - n_texts, max(width, min(rounded(width), widest or width)) - width
    if rows or columns:
        ids, mask = F.pad(ids, (0, columns, 0, rows), value=padding), F.pad(mask, (0, columns, 0, rows))
        # What attention makes of no token at all is up to its kernel.
        mask[n_texts:, 0] = 1
    return {"input_ids": ids, "attention_mask": mask}


def rounded(size: int) -> int:
    """Round a number of texts or tokens up, by less than `FINEST` or than a quarter, so that few sizes are met."""
    step = max(FINEST, 1 << max(0, (size - 1).bit_length() - 3))
    return -(-size // step) * step

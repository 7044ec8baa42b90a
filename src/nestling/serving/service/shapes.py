"""Requests and answers of the server as they stand in its OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from nestling.config.names import Kind
from nestling.errors import InputError
from nestling.serving.index.documents import check_filters
from nestling.serving.index.index import Mode
from nestling.serving.service.limits import CHARACTERS, EMBED_CHARACTERS, EMBED_TEXTS, FIELDS, HITS, TEXTS, VALUES, K


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank; give a text")
    return text


def _texts_only(filters: Any) -> Any:
    try:
        check_filters(filters)
    except InputError as error:
        raise ValueError(str(error)) from None
    return filters


Text = Annotated[str, Field(min_length=1, max_length=CHARACTERS), AfterValidator(_not_blank)]
LongText = Annotated[str, Field(min_length=1), AfterValidator(_not_blank)]
Name = Annotated[str, Field(max_length=200)]
Value = Annotated[str, Field(max_length=1_000)]
Filters = Annotated[
    dict[Name, Value | Annotated[list[Value], Field(max_length=VALUES)]],
    Field(max_length=FIELDS, description="Field to a value or several of which one is enough; all fields must fit."),
    BeforeValidator(_texts_only),
]
Precision = Literal["float32", "float16", "int8", "int4", "binary"]
Timings = dict[Literal["encode_ms", "search_ms", "total_ms"], float]
Usage = dict[Literal["prompt_tokens", "total_tokens"], int]
IndexName = Annotated[Name | None, Field(description="By default the first that is served.")]


class Strict(BaseModel):
    """A request of our own: unknown names are refused, since they are slips."""

    model_config = ConfigDict(extra="forbid")


class SearchRequest(Strict):
    """Queries for one index; give `query` or `queries`."""

    query: Text | None = None
    queries: Annotated[list[Text], Field(min_length=1, max_length=TEXTS)] | None = None
    k: Annotated[int, Field(ge=1, le=K, description=f"k times the queries is at most {HITS}.")] = 10
    mode: Annotated[Mode | None, Field(description="By default the best that the index has.")] = None
    filters: Filters | None = None
    index: IndexName = None

    @property
    def texts(self) -> list[str]:
        return [self.query] if self.query is not None else list(self.queries or ())

    @model_validator(mode="after")
    def _check(self) -> SearchRequest:
        if (self.query is None) == (self.queries is None):
            raise ValueError("give either query or queries")
        if len(self.texts) * self.k > HITS:
            raise ValueError(f"{len(self.texts)} queries of {self.k} hits are more than {HITS} hits")
        return self


class Hit(BaseModel):
    rank: int
    id: str
    score: float
    text: str
    fields: dict[str, str]


class Result(BaseModel):
    query: str
    hits: list[Hit]


class SearchAnswer(BaseModel):
    index: str
    mode: Mode
    results: list[Result]
    timings: Annotated[Timings, Field(description="Encoding includes the wait for other requests to be encoded with.")]


class EmbedRequest(BaseModel):
    """As OpenAI's embeddings API takes it; names that it has beside these are passed over."""

    input: Annotated[
        LongText | Annotated[list[LongText], Field(min_length=1, max_length=EMBED_TEXTS)],
        Field(
            description=f"A text or several, not lists of tokens; of a text {EMBED_CHARACTERS:,} characters are read."
        ),
    ]
    model: Annotated[Name | None, Field(description="A served index or its model; by default the first.")] = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int | None, Field(ge=1, description="Keep so many, brought back to length 1.")] = None
    input_type: Annotated[Kind, Field(description="Picks the model's prompt, where it has one.")] = "document"

    @field_validator("input", mode="before")
    @classmethod
    def _no_tokens(cls, value: Any) -> Any:
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, int | list) and not isinstance(item, bool) for item in items[:EMBED_TEXTS]):
            advice = "send texts (LangChain: OpenAIEmbeddings(..., check_embedding_ctx_length=False))"
            raise ValueError(f"lists of tokens are not taken, since they belong to another tokenizer; {advice}")
        return value

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else list(self.input)


class Embedding(BaseModel):
    """One text's vector: numbers, or base64 of float32, little endian."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbedAnswer(BaseModel):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Annotated[Usage, Field(description="Tokens read, after truncation.")]


class ModelAnswer(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsAnswer(BaseModel):
    """Indexes by name, the default first, then models."""

    object: Literal["list"]
    data: list[ModelAnswer]


class Column(Strict):
    """A way to search: an index as it is served, or a cell of its vectors at another size or precision."""

    index: IndexName = None
    mode: Mode | None = None
    dim: Annotated[int | None, Field(ge=1, description="One of the index's `dims`.")] = None
    precision: Precision | None = None


class CompareRequest(Strict):
    query: Text
    columns: Annotated[list[Column], Field(min_length=1, max_length=2)]
    k: Annotated[int, Field(ge=1, le=100)] = 10


class MarkedHit(Hit):
    """A result; `relevant` is null where the query was not judged."""

    relevant: bool | None


class ColumnAnswer(BaseModel):
    """The results of one way. `bytes` are those of a document in what is scanned; null for words alone."""

    index: str
    mode: Mode
    dim: int | None
    precision: str | None
    bytes: float | None
    recall: Annotated[float | None, Field(description="Of the judged relevant documents; null where none is.")]
    encode_ms: float
    search_ms: float
    hits: list[MarkedHit]


class CompareAnswer(BaseModel):
    query: str
    judged: bool
    columns: list[ColumnAnswer]


class SizesRequest(Strict):
    query: Text
    index: IndexName = None
    precision: Precision = "float32"


class Size(BaseModel):
    """The share of the wanted documents in the top 10 at a size, 0 to 1."""

    dim: int
    bytes: int
    recall: float


class SizesAnswer(BaseModel):
    """A query at every size; wanted is what was judged relevant, else the top 10 by whole float32 vectors."""

    index: str
    precision: Precision
    against: Literal["judged", "full size"]
    wanted: int
    sizes: list[Size]


class IndexAnswer(BaseModel):
    """An index that is served. `dims` and `precisions` are empty where it is too large for cells."""

    name: str
    model: str
    documents: int
    dim: int
    modes: list[Mode]
    fields: list[str]
    bytes: float
    dims: list[int]
    precisions: list[Precision]
    note: str | None


class IndexesAnswer(BaseModel):
    indexes: list[IndexAnswer]
    judged: int


class ErrorAnswer(BaseModel):
    """A refusal or failure, in OpenAI's shape: one line, its kind, and the parameter that it is about."""

    error: dict[Literal["message", "type", "param", "code"], str | None]


QueriesAnswer = dict[Literal["queries"], list[str]]
HealthAnswer = dict[Literal["status"], Literal["ready", "loading"]]

"""The protocol between code that samples and an engine that answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from enum import StrEnum
from typing import Protocol

import msgspec

from enginehouse.core.messages import Prompt
from enginehouse.core.sampling import SamplingParameters
from enginehouse.core.tool_calls import ToolCall, ToolDefinition


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """How patiently a request is sent; None is the sampler's own.

    `timeout` is in seconds, for each attempt, from the connection to the last byte of the reply.
    `max_retries` is how often the request is sent again after a failure that may pass.
    """

    timeout: float | None = None
    max_retries: int | None = None


class SampleRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt and how to sample it. `model` None is the server's default model.

    `tools` are offered in the model's native form; `tool_choice` is "auto", "required", "none" or
    the name of the tool that must be called. Samplers that send nothing over a network may ignore
    `delivery`.
    """

    prompt: Prompt
    parameters: SamplingParameters = SamplingParameters()
    model: str | None = None
    tools: tuple[ToolDefinition, ...] = ()
    tool_choice: str = "auto"
    delivery: Delivery | msgspec.UnsetType = msgspec.UNSET


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Natural-log probability of one token; `top` are the most likely at its place."""

    logprob: float
    text: str
    token_id: int | None = None
    rank: int | None = None
    top: tuple[TokenLogprob, ...] = ()


class Completion(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One answer. finish_reason "length" means that max_tokens cut it off."""

    text: str
    finish_reason: str | None
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


class Timing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`started` in seconds since the epoch; the rest are durations in seconds.

    `elapsed` is that of the attempt which succeeded; `attempts` counts it and the failed ones.
    """

    started: float
    elapsed: float
    first_token: float | None = None
    attempts: int = 1


class SampleResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came back. prompt_logprobs[i] belongs to prompt token i; the first is None.

    Token counts are the server's, 0 where it reports none. `weights_digest` is that of the weights
    that answered, if they can be swapped while the server runs.
    """

    completions: tuple[Completion, ...]
    model: str
    request_id: str
    prompt_tokens: int
    completion_tokens: int
    timing: Timing
    prompt_token_ids: tuple[int, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    weights_digest: str | None = None


class Usage(msgspec.Struct, frozen=True):
    """The server's own token counts; the completion's are summed over the choices."""

    prompt_tokens: int
    completion_tokens: int = 0


class Delta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of a streamed answer; the last piece of a completion has its finish_reason.

    `usage` comes in a last piece of its own, from servers that were asked for it.
    """

    text: str
    index: int = 0
    token_ids: tuple[int, ...] | None = None
    finish_reason: str | None = None
    usage: Usage | None = None


class Capability(StrEnum):
    """A feature that an engine may support."""

    CHAT = "chat"
    TEXT = "text"
    TOKENS = "tokens"
    TOKENIZE = "tokenize"
    STREAM = "stream"
    N = "n"
    SEED = "seed"
    TOP_K = "top_k"
    MIN_P = "min_p"
    REPETITION_PENALTY = "repetition_penalty"
    IGNORE_EOS = "ignore_eos"
    TOKEN_IDS = "token_ids"
    LOGPROBS = "logprobs"
    PROMPT_LOGPROBS = "prompt_logprobs"
    JSON_SCHEMA = "json_schema"
    CHOICE = "choice"
    REGEX = "regex"
    GRAMMAR = "grammar"
    TOOLS = "tools"
    ADAPTERS = "adapters"


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine supports, and the request fields that it would silently ignore.

    `ignored` maps such a field to what to use instead; the client refuses it. `most_logprobs` is
    the most candidates per token besides the chosen one, None if unknown.
    """

    supports: frozenset[Capability]
    ignored: Mapping[str, str] = msgspec.field(default_factory=dict)
    most_logprobs: int | None = None


class Sampler(Protocol):
    """Anything that returns completions."""

    @property
    def capabilities(self) -> Capabilities:
        """What the sampler supports."""
        ...

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """Ask once. Raises WireError; retryable errors have been retried already.

        An answer that the engine aborted is a ServerFaultError, not a completion.
        """
        ...

    def stream(self, request: SampleRequest) -> AsyncIterator[Delta]:
        """Ask once, yielding the answer as it is made."""
        ...

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """The engine's own token ids of `text`."""
        ...


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """A server's queue at one moment, and its counters since it started.

    `steps` are the computed batches, from servers that count a request's tokens at its end.
    kv_cache_usage is a fraction in [0, 1]; prefix_cache_queries are the prompt tokens that were
    looked up in the prefix cache, prefix_cache_hits those found there.
    """

    running: int
    waiting: int
    kv_cache_usage: float | None = None
    prompt_tokens: int | None = None
    generation_tokens: int | None = None
    preemptions: int | None = None
    prefix_cache_queries: int | None = None
    prefix_cache_hits: int | None = None
    steps: int | None = None


class LoadSignal(Protocol):
    """How a client reads an engine's queue; supplied by the engine, polled by the client."""

    @property
    def path(self) -> str:
        """The path to GET."""
        ...

    def parse(self, body: str) -> Load | None:
        """The queue, or None if the body does not say."""
        ...


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Who answered; `revision` is a hub model's commit, `adapter_digest` that of a LoRA.

    `dtype` is the type that the engine was started with, None if the engine chose it;
    `dtype_reason` says why if the user did not choose it. Every other field that is not known is
    None, with the reason in `unknown`.
    """

    engine: str | None
    engine_version: str | None
    engine_arguments: tuple[str, ...] | None
    environment: str | None
    model: str
    weights_digest: str | None
    chat_template_digest: str | None
    base_url: str
    revision: str | None = None
    adapter_digest: str | None = None
    dtype: str | None = None
    dtype_reason: str | None = None
    unknown: Mapping[str, str] = msgspec.field(default_factory=dict)

"""Reply parts that OpenAI's chat and text completions share, and the small endpoints beside them.

Typed decoding: a reply that lacks a required field, or has one of the wrong type, is malformed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec

from enginehouse.core.errors import MalformedResponseError
from enginehouse.core.messages import TokenPrompt
from enginehouse.core.sampler import (
    Completion,
    Delta,
    SampleRequest,
    SampleResponse,
    Timing,
    TokenLogprob,
    Usage,
)

_EXCERPT = 300
_TEXT_TYPES = ("text", "output_text")
_TRUNCATED = "Input data was truncated"  # msgspec's words
T = TypeVar("T")


class PromptEntry(msgspec.Struct):
    """vLLM's log-probability of one candidate for a place in the prompt."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


PromptEntries = list[dict[int, PromptEntry] | None]


class Counts(msgspec.Struct):
    """A reply's `usage`; compatible servers may leave out any part of it."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def usage(counts: Counts | None) -> Usage:
    """The counts, 0 where the server did not report one."""
    if counts is None:
        return Usage(0, 0)
    return Usage(counts.prompt_tokens or 0, counts.completion_tokens or 0)


class ContentPart(msgspec.Struct):
    """One of the parts in which some servers send a message's content."""

    type: str = "text"
    text: str | None = None


Content = str | list[ContentPart | str] | None


def text_of(content: Content) -> str:
    """The text in a message's content; parts of other kinds (thinking, images) are left out."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(
        part if isinstance(part, str) else part.text or ""
        for part in content
        if isinstance(part, str) or part.type in _TEXT_TYPES
    )


class _TokenCandidate(msgspec.Struct):
    token: str
    logprob: float
    id: int | None = None  # only llama-server sends it


class _Token(_TokenCandidate):
    top_logprobs: list[_TokenCandidate] | None = None


class TokenLogprobs(msgspec.Struct):
    """A chat's log-probabilities; llama-server gives them with texts, too."""

    content: list[_Token] | None = None

    def decoded(self, ids: list[int] | None) -> tuple[TokenLogprob, ...] | None:
        """As core keeps them, with `ids` for the tokens if there is one for each."""
        if self.content is None:
            return None
        known = ids if ids is not None and len(ids) == len(self.content) else None
        return tuple(
            TokenLogprob(
                logprob=token.logprob,
                text=token.token,
                token_id=token.id if known is None else known[place],
                top=tuple(
                    TokenLogprob(logprob=c.logprob, text=c.token, token_id=c.id)
                    for c in token.top_logprobs or ()
                ),
            )
            for place, token in enumerate(self.content)
        )


class Choice(msgspec.Struct):
    """What a choice has in every reply and every chunk of a stream."""

    index: int = 0
    finish_reason: str | None = None
    token_ids: list[int] | None = None


C = TypeVar("C", bound=Choice)


class _Reply(Protocol):
    """What both replies have beside their choices."""

    model: str
    usage: Counts | None
    id: str


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _Tokens(msgspec.Struct):
    tokens: list[int]


_models = msgspec.json.Decoder(_Models)
_tokens = msgspec.json.Decoder(_Tokens)
_encode = msgspec.json.Encoder().encode


def excerpt(body: bytes) -> str:
    """The beginning of a body, for an error message."""
    text = body[: _EXCERPT * 4].decode("utf-8", "replace").strip()
    return (text[:_EXCERPT] + " …" if len(text) > _EXCERPT else text) or "(empty)"


def decode_reply(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode `body`, or raise MalformedResponseError with the reason and an excerpt."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if body and str(error) == _TRUNCATED:
            raise MalformedResponseError(
                "the reply stops in the middle of its JSON",
                why=f"{len(body)} bytes came before the server closed it; "
                f"it begins: {excerpt(body)}",
                fix="read the log of the server and of any proxy in front of it: one of them cut "
                "the reply off",
            ) from None
        raise malformed(str(error), body) from None
    except RecursionError:
        raise malformed("its JSON is nested too deeply", body) from None


def malformed(why: str, body: bytes) -> MalformedResponseError:
    """The error for a reply that does not follow the protocol or lacks what was requested."""
    return MalformedResponseError(
        "the reply does not follow the protocol",
        why=f"{why}; it begins: {excerpt(body)}",
        fix="check that the address is that of an OpenAI-compatible server",
    )


def in_order(choices: list[C], request: SampleRequest, body: bytes) -> list[C]:
    """The choices by their index; MalformedResponseError unless there are as many as requested."""
    wanted = request.parameters.n
    if len(choices) != wanted:
        raise malformed(f"it has {len(choices)} choices instead of {wanted}", body)
    if wanted > 1:
        choices.sort(key=lambda choice: choice.index)
    return choices


def sample_response(
    reply: _Reply,
    completions: tuple[Completion, ...],
    *,
    request: SampleRequest,
    body: bytes,
    timing: Timing,
    prompt_token_ids: list[int] | None,
    prompt_logprobs: PromptEntries | None,
) -> SampleResponse:
    """The decoded reply. Raises MalformedResponseError if it lacks log-probabilities."""
    if request.parameters.logprobs is not None and any(c.logprobs is None for c in completions):
        raise malformed("logprobs were requested but are missing", body)
    counts = usage(reply.usage)
    return SampleResponse(
        completions=completions,
        model=reply.model,
        request_id=reply.id,
        prompt_tokens=counts.prompt_tokens,
        completion_tokens=counts.completion_tokens,
        timing=timing,
        prompt_token_ids=token_ids_or_none(prompt_token_ids),
        prompt_logprobs=decode_prompt_logprobs(
            prompt_logprobs, token_ids=prompt_token_ids, request=request, body=body
        ),
    )


def decode_deltas(
    choices: Sequence[C], counts: Counts | None, *, text: Callable[[C], str]
) -> tuple[Delta, ...]:
    """The pieces in one chunk of a stream; the counts matter only in a chunk of their own."""
    if counts is not None and not choices:
        return (Delta(text="", usage=usage(counts)),)
    return tuple(
        Delta(
            text=text(choice),
            index=choice.index,
            token_ids=token_ids_or_none(choice.token_ids),
            finish_reason=choice.finish_reason,
        )
        for choice in choices
    )


def decode_prompt_logprobs(
    entries: PromptEntries | None,
    *,
    token_ids: list[int] | None,
    request: SampleRequest,
    body: bytes,
) -> tuple[TokenLogprob | None, ...] | None:
    """One log-probability per prompt token, the first None; None if they were not requested."""
    wanted = request.parameters.prompt_logprobs
    if wanted is None:
        return None
    if entries is None:
        raise malformed("prompt_logprobs were requested but are missing", body)
    prompt = request.prompt
    ids = prompt.token_ids if isinstance(prompt, TokenPrompt) else token_ids
    if ids is None or len(ids) != len(entries):
        raise malformed("prompt_logprobs do not match the prompt's token ids", body)
    decoded: list[TokenLogprob | None] = []
    for token_id, candidates in zip(ids, entries, strict=True):
        if candidates is None:
            decoded.append(None)
            continue
        entry = candidates.get(token_id)
        if entry is None:
            raise malformed(f"prompt_logprobs lack the prompt's own token {token_id}", body)
        top = _most_likely(candidates, wanted) if wanted else ()
        decoded.append(_prompt_token(token_id, entry, top))
    return tuple(decoded)


def _prompt_token(
    token_id: int, entry: PromptEntry, top: tuple[TokenLogprob, ...] = ()
) -> TokenLogprob:
    return TokenLogprob(
        logprob=entry.logprob,
        text=entry.decoded_token or "",
        token_id=token_id,
        rank=entry.rank,
        top=top,
    )


def _most_likely(candidates: dict[int, PromptEntry], count: int) -> tuple[TokenLogprob, ...]:
    ranked = sorted(candidates.items(), key=lambda pair: -pair[1].logprob)
    return tuple(_prompt_token(token_id, entry) for token_id, entry in ranked[:count])


def is_end(data: bytes) -> bool:
    """See Dialect.is_end."""
    return data == b"[DONE]"


def token_ids_or_none(ids: list[int] | None) -> tuple[int, ...] | None:
    """Ids as core keeps them."""
    return None if ids is None else tuple(ids)


def decode_models(body: bytes) -> tuple[str, ...]:
    """The names in a reply of GET /v1/models, in the server's order."""
    return tuple(model.id for model in decode_reply(_models, body).data)


def encode_tokenize(text: str, *, model: str, add_special_tokens: bool) -> bytes:
    """The body of vLLM's POST /tokenize."""
    return _encode({"model": model, "prompt": text, "add_special_tokens": add_special_tokens})


def decode_tokenize(body: bytes) -> tuple[int, ...]:
    """The token ids in a reply of POST /tokenize."""
    return tuple(decode_reply(_tokens, body).tokens)

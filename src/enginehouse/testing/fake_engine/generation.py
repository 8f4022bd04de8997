"""The two endpoints that generate."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from typing import Any

import msgspec
from aiohttp import web

from enginehouse.testing.fake_engine import tokenizer
from enginehouse.testing.fake_engine.errors import ApiError, prompt_too_long
from enginehouse.testing.fake_engine.model import Question
from enginehouse.testing.fake_engine.replies import Reply
from enginehouse.testing.fake_engine.requests import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    check_sampling,
    constraint,
    parse,
)
from enginehouse.testing.fake_engine.state import Engine
from enginehouse.testing.fake_engine.tool_calls import offered

ENGINE = web.AppKey("engine", Engine)
STREAM = web.RequestKey("stream", web.StreamResponse)  # a reply that has begun
CUT = web.RequestKey("cut", bool)  # send half of the stream, and leave its end to the middleware
_encode = msgspec.json.Encoder().encode
Asked = ChatRequest | CompletionRequest


async def chat(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    asked: ChatRequest = parse(await request.read(), ChatRequest)
    if not asked.messages:
        raise ApiError(
            "Cannot apply chat template to an empty conversation. Provide at least one message."
        )
    users = [message.text for message in asked.messages if message.role == "user"]
    ids = _encoded(render(asked.messages), limit=request.app[ENGINE].max_model_len)
    engine = request.app[ENGINE]
    question = Question(
        weights=engine.weights_of(asked.model),
        ids=ids,
        user_text=users[-1] if users else "",
        functions=offered(asked.tools, asked.tool_choice, engine.arguments),
    )
    return await _answer(request, asked, question)


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    asked: CompletionRequest = parse(await request.read(), CompletionRequest)
    prompt = asked.only_prompt
    if prompt == "":
        raise ApiError(
            "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)",
            parameter="prompt",
        )
    if prompt == []:
        raise ApiError("You must pass at least one prompt")
    if isinstance(prompt, str):
        text = prompt
        ids = _encoded(text, limit=request.app[ENGINE].max_model_len)
    else:
        ids = prompt
        check_vocabulary(ids)
        text = tokenizer.decode(ids)
    weights = request.app[ENGINE].weights_of(asked.model)
    return await _answer(request, asked, Question(weights=weights, ids=ids, user_text=text))


def render(messages: list[ChatMessage]) -> str:
    """ChatML, with the assistant's turn opened."""
    turns = "".join(f"<|im_start|>{m.role}\n{m.text}<|im_end|>\n" for m in messages)
    return turns + "<|im_start|>assistant\n"


def _encoded(text: str, *, limit: int) -> list[int]:
    """Token ids; a text that is too long by far is refused uncounted, as vLLM does."""
    if len(text) > limit * tokenizer.LONGEST_TOKEN:
        raise prompt_too_long(limit + 1, limit, counted="at least ")
    return tokenizer.encode(text)


def check_vocabulary(ids: list[int]) -> None:
    """Raise ApiError for an id that no token has."""
    for token in ids:
        if not 0 <= token < tokenizer.VOCABULARY_SIZE:
            raise ApiError(f"Token id {token} is out of vocabulary")


async def _answer(request: web.Request, asked: Asked, question: Question) -> web.StreamResponse:
    engine = request.app[ENGINE]
    check_sampling(asked, top=asked.top, max_logprobs=engine.arguments.max_logprobs)
    is_chat = isinstance(asked, ChatRequest)
    budget = engine.budget(asked, prompt=len(question.ids), default=None if is_chat else 16)
    structured = constraint(asked)
    async with engine.slot():
        # they may have been swapped while the request waited
        question = replace(question, weights=engine.weights_of(asked.model))
        answers = engine.model.answers(question, asked, budget=budget, structured=structured)
        reply = Reply(
            id=("chatcmpl-" if is_chat else "cmpl-") + secrets.token_hex(8),
            created=int(time.time()),
            model=asked.model or engine.names[0],
            chat=is_chat,
            question=question,
            answers=answers,
            top=asked.top,
            prompt_top=None if asked.stream else asked.prompt_logprobs,
            tool_parser=engine.arguments.tool_call_parser if question.functions else None,
            token_ids=bool(asked.return_token_ids),
            scored=asked.logprob_token_ids,
            named_by_id=bool(asked.return_tokens_as_token_ids),
            echo=isinstance(asked, CompletionRequest) and bool(asked.echo),
            usage_in_stream=bool((asked.stream_options or {}).get("include_usage")),
        )
        made = _finish(engine, reply)
        if asked.stream:
            return await _stream(request, reply)
        if not await engine.computed(engine.token_latency * made):
            reply = _aborted(reply)
    return web.json_response(body=_encode(reply.body()))


def _aborted(reply: Reply) -> Reply:
    given_up = [replace(a, ids=[], text="", finish_reason="abort") for a in reply.answers]
    return msgspec.structs.replace(reply, answers=given_up)


def _finish(engine: Engine, reply: Reply) -> int:
    """Count the answers; returns the length of the longest."""
    engine.prompt_tokens += len(reply.question.ids)
    for answer in reply.answers:
        engine.generation_tokens += len(answer.ids)
        engine.finished[answer.finish_reason] += 1
    return max(len(answer.ids) for answer in reply.answers)


def _given_up(chunk: dict[str, Any]) -> dict[str, Any]:
    """The last chunk of a stream that a pause aborted."""
    return chunk | {"choices": [c | {"finish_reason": "abort"} for c in chunk["choices"]]}


async def _stream(request: web.Request, reply: Reply) -> web.StreamResponse:
    engine = request.app[ENGINE]
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    )
    await response.prepare(request)
    request[STREAM] = response
    chunks = list(reply.chunks())
    cut = CUT in request
    for chunk in chunks[: len(chunks) // 2] if cut else chunks:
        await response.write(b"data: " + _encode(chunk) + b"\n\n")
        if not await engine.computed(engine.token_latency):
            await response.write(b"data: " + _encode(_given_up(chunk)) + b"\n\n")
            break
    if cut:
        return response
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response

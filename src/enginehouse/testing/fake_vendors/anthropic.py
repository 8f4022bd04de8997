"""Anthropic's messages, faked. Written from https://docs.anthropic.com/en/api/messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from aiohttp import web

from enginehouse.testing.fake_engine.generation import render
from enginehouse.testing.fake_engine.requests import ChatMessage, Sampling
from enginehouse.testing.fake_vendors.calls import wanted_calls
from enginehouse.testing.fake_vendors.schemas import anthropic_refusal
from enginehouse.testing.fake_vendors.vendor import FakeVendor, Quota, Refused

_KINDS = {429: "rate_limit_error", 529: "overloaded_error"}
_KNOWN = frozenset(
    [
        "model",
        "messages",
        "max_tokens",
        "system",
        "stream",
        "temperature",
        "top_p",
        "top_k",
        "stop_sequences",
        "tools",
        "tool_choice",
        "output_config",
    ]
)
_SAMPLING = ("temperature", "top_p", "top_k")


@dataclass(kw_only=True)
class FakeAnthropic(FakeVendor):
    """api.anthropic.com; a model in `unsampled` takes no sampling parameters.

    A user who says "forbidden" is refused by the model, and one who says "think" sees it think.
    """

    unsampled: tuple[str, ...] = ()

    def routes(self) -> list[web.RouteDef]:
        """Its endpoints."""
        return [
            web.get("/v1/models", self.list_models),
            web.post("/v1/messages", self.generate),
        ]

    def authenticate(self, request: web.Request) -> None:
        """The key has a header of its own, and so has the version."""
        if request.headers.get("x-api-key") != self.key:
            raise Refused(401, "invalid x-api-key", kind="authentication_error")
        if request.headers.get("anthropic-version") != "2023-06-01":
            raise Refused(
                400, "anthropic-version: header is required", kind="invalid_request_error"
            )

    def answer(self, body: Any) -> Any:
        """See FakeVendor."""
        self._check(body)
        text, user_text = _prompt(body)
        blocks, reason, made = self._blocks(body, text, user_text)
        usage = {"input_tokens": len(text) // 4 + 1, "output_tokens": made}
        message = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": blocks,
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": usage | {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0},
        }
        return [_event(event) for event in _events(message)] if body.get("stream") else message

    def _check(self, body: Any) -> None:
        """Raise Refused for what Anthropic refuses, in its words."""
        kind = "invalid_request_error"
        if body["model"] not in (*self.models, *self.unsampled):
            raise Refused(404, f"model: {body['model']}", kind="not_found_error")
        for name in body:
            if name not in _KNOWN:
                raise Refused(400, f"{name}: Extra inputs are not permitted", kind=kind)
            if name in _SAMPLING and body["model"] in self.unsampled:
                raise Refused(400, f"`{name}` is deprecated for this model.", kind=kind)
        if not 0 <= body.get("temperature", 1) <= 1:
            raise Refused(400, "temperature: range: 0..1", kind=kind)
        if (wanted := body["max_tokens"]) > self.context:
            message = (
                f"max_tokens: {wanted} > {self.context}, which is the maximum allowed number of "
                f"output tokens for {body['model']}"
            )
            raise Refused(400, message, kind=kind)
        written = len(json.dumps(body["messages"])) // 4
        if written > self.context:
            message = f"prompt is too long: {written} tokens > {self.context} maximum"
            raise Refused(400, message, kind=kind)
        _check_turns(body["messages"])
        schema = _schema(body)
        if schema is not None and (problem := anthropic_refusal(schema)):
            raise Refused(400, problem, kind=kind)

    def _blocks(
        self, body: Any, text: str, user_text: str
    ) -> tuple[list[dict[str, Any]], str, int]:
        if "forbidden" in user_text:
            return [], "refusal", 1
        if calls := _calls(body, user_text):
            return calls, "tool_use", 7
        stops = body.get("stop_sequences")
        sampling = Sampling(
            max_tokens=body["max_tokens"], temperature=body.get("temperature"), stop=stops
        )
        _, (answer,) = self.sample(text, user_text, sampling, _schema(body))
        blocks: list[dict[str, Any]] = [{"type": "text", "text": answer.text}]
        if "think" in user_text:
            blocks.insert(0, {"type": "thinking", "thinking": "Well …", "signature": "c2ln"})
        reason = {"length": "max_tokens", "stop": "end_turn"}[answer.finish_reason]
        reason = reason if answer.stop_reason is None else "stop_sequence"
        return blocks, reason, len(answer.ids)

    def error(self, refused: Refused) -> Any:
        """See FakeVendor."""
        error = {"type": _KINDS.get(refused.status, refused.kind), "message": refused.message}
        return {"type": "error", "error": error, "request_id": "req_1"}

    def quota_headers(self, quota: Quota) -> dict[str, str]:
        """See FakeVendor."""
        reset = datetime.now(UTC) + timedelta(seconds=quota.reset)
        return {
            "anthropic-ratelimit-requests-limit": str(quota.requests),
            "anthropic-ratelimit-requests-remaining": str(quota.remaining),
            "anthropic-ratelimit-requests-reset": reset.isoformat().replace("+00:00", "Z"),
        }

    def model_list(self) -> Any:
        """See FakeVendor."""
        models = [
            {
                "type": "model",
                "id": name,
                "display_name": name,
                "created_at": "2026-01-01T00:00:00Z",
            }
            for name in (*self.models, *self.unsampled)
        ]
        return {"data": models, "has_more": False, "first_id": None, "last_id": None}


def _schema(body: Any) -> Any:
    return ((body.get("output_config") or {}).get("format") or {}).get("schema")


def _check_turns(messages: list[Any]) -> None:
    """Every call is answered in the very next turn, and no text is empty."""
    for place, message in enumerate(messages):
        blocks = message["content"] if isinstance(message["content"], list) else []
        if any(block["type"] == "text" and not block["text"] for block in blocks):
            raise Refused(
                400,
                f"messages.{place}: text content blocks must be non-empty",
                kind="invalid_request_error",
            )
        called = {block["id"] for block in blocks if block["type"] == "tool_use"}
        after = messages[place + 1]["content"] if place + 1 < len(messages) else []
        answered = {block.get("tool_use_id") for block in after}
        if missing := called - answered:
            raise Refused(
                400,
                f"messages.{place + 1}: `tool_use` ids were found without `tool_result` blocks "
                f"immediately after: {', '.join(missing)}",
                kind="invalid_request_error",
            )


def _prompt(body: Any) -> tuple[str, str]:
    """The whole prompt, and the last thing that the user said."""
    turns = [ChatMessage("system", body["system"])] if "system" in body else []
    for message in body["messages"]:
        content = message["content"]
        if isinstance(content, list):
            content = "".join(str(b.get("text", b.get("content", ""))) for b in content)
        turns.append(ChatMessage(message["role"], content))
    return render(turns), turns[-1].text


def _calls(body: Any, user_text: str) -> list[dict[str, Any]]:
    """The calls that OpenAI's fake would make, as blocks."""
    last = body["messages"][-1]["content"]
    choice = body.get("tool_choice", {"type": "auto"})
    if choice["type"] == "none" or any(block["type"] == "tool_result" for block in last):
        return []
    tools = [
        {"function": {"name": t["name"], "parameters": t["input_schema"]}}
        for t in body.get("tools", ())
    ]
    named = {"function": {"name": choice.get("name")}}
    asked = {"tool_choice": named if "name" in choice else "auto", "messages": [{"role": "user"}]}
    return [
        {
            "type": "tool_use",
            "id": f"toolu_{call['id']}",
            "name": call["function"]["name"],
            "input": json.loads(call["function"]["arguments"]),
        }
        for call in wanted_calls(asked, tools, user_text)
    ]


def _event(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\n".encode() + b"data: " + msgspec.json.encode(event) + b"\n\n"


def _events(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The named events of a stream, a ping among them."""
    usage = message["usage"]
    opening = {"content": [], "stop_reason": None, "usage": usage | {"output_tokens": 1}}
    yield {"type": "message_start", "message": message | opening}
    yield {"type": "ping"}
    for index, block in enumerate(message["content"]):
        yield from _block_events(index, block)
    ended = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": ended, "usage": usage}
    yield {"type": "message_stop"}


def _block_events(index: int, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
    kind = block["type"]
    if kind == "text":
        start = {"type": "text", "text": ""}
        text = block["text"]
        pieces = [text[at : at + 5] for at in range(0, len(text), 5)]
        deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
    elif kind == "thinking":
        start = {"type": "thinking", "thinking": "", "signature": ""}
        deltas = [{"type": "thinking_delta", "thinking": block["thinking"]}]
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
    else:
        start = block | {"input": {}}
        partial = json.dumps(block["input"])
        deltas = [{"type": "input_json_delta", "partial_json": partial}]
    yield {"type": "content_block_start", "index": index, "content_block": start}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}

"""OpenAI's chat completions, and OpenRouter's, faked.

Written from https://platform.openai.com/docs/api-reference/chat and
https://openrouter.ai/docs/api-reference/overview.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from enginehouse.testing.fake_engine.generation import render
from enginehouse.testing.fake_engine.replies import Reply
from enginehouse.testing.fake_engine.requests import ChatMessage, Sampling
from enginehouse.testing.fake_vendors.calls import wanted_calls
from enginehouse.testing.fake_vendors.schemas import openai_refusal
from enginehouse.testing.fake_vendors.vendor import FakeVendor, Quota, Refused

_encode = msgspec.json.encode
_REASONING = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "logprobs")


@dataclass(kw_only=True)
class FakeOpenAI(FakeVendor):
    """api.openai.com; a model in `reasoning` takes neither sampling parameters nor max_tokens.

    A user who says "forbidden" is refused by the model.
    """

    reasoning: tuple[str, ...] = ()
    known: frozenset[str] = field(
        default=frozenset(
            [
                "model",
                "messages",
                "max_tokens",
                "max_completion_tokens",
                "temperature",
                "top_p",
                "n",
                "stop",
                "stream",
                "presence_penalty",
                "frequency_penalty",
                "logprobs",
                "top_logprobs",
                "response_format",
                "tools",
                "tool_choice",
                "stream_options",
                "seed",
                "parallel_tool_calls",
            ]
        )
    )

    def routes(self) -> list[web.RouteDef]:
        """Its endpoints."""
        return [
            web.get("/v1/models", self.list_models),
            web.post("/v1/chat/completions", self.generate),
        ]

    def authenticate(self, request: web.Request) -> None:
        """A bearer token; the refusal quotes it, as some servers do."""
        given = request.headers.get("Authorization", "")
        if given != f"Bearer {self.key}":
            message = f"Incorrect API key provided: {given.removeprefix('Bearer ')}."
            raise Refused(401, message, kind="invalid_request_error", code="invalid_api_key")

    def answer(self, body: Any) -> Any:
        """See FakeVendor."""
        self.check(body)
        messages = [
            ChatMessage(message["role"], message.get("content")) for message in body["messages"]
        ]
        users = [message.text for message in messages if message.role == "user"]
        if "forbidden" in users[-1]:
            return self._message(body, {"content": None, "refusal": "I cannot help with that."})
        if calls := wanted_calls(body, body.get("tools", ()), users[-1]):
            return self._message(body, {"content": None, "tool_calls": calls}, "tool_calls")
        reply = self._reply(body, render(messages), users[-1])
        if not body.get("stream"):
            return self.whole(reply.body())
        return [*(self.event(chunk) for chunk in reply.chunks()), b"data: [DONE]\n\n"]

    def check(self, body: Any) -> None:
        """Raise Refused for what OpenAI refuses, in its words."""
        kind = "invalid_request_error"
        if body["model"] not in (*self.models, *self.reasoning):
            message = f"The model `{body['model']}` does not exist or you do not have access to it."
            raise Refused(404, message, kind=kind, code="model_not_found")
        refused = (*_REASONING, "max_tokens") if body["model"] in self.reasoning else ()
        for name in body:
            if name in refused or name not in self.known:
                message = f"Unsupported parameter: '{name}' is not supported with this model."
                raise Refused(400, message, kind=kind, code="unsupported_parameter")
        limit = self.limit(body)
        if limit > self.context:
            message = (
                f"max_tokens is too large: {limit}. This model supports at most {self.context} "
                f"completion tokens, whereas you provided {limit}."
            )
            raise Refused(400, message, kind=kind, code="invalid_value")
        written = sum(len(str(message.get("content"))) for message in body["messages"])
        if written // 4 > self.context:
            message = (
                f"This model's maximum context length is {self.context} tokens. However, your "
                f"messages resulted in {written // 4} tokens."
            )
            raise Refused(400, message, kind=kind, code="context_length_exceeded")
        schema = _schema(body)
        if schema is not None and (problem := openai_refusal(schema)):
            raise Refused(400, problem, kind=kind)

    def limit(self, body: Any) -> int:
        """What the request allows of an answer."""
        wanted = body.get("max_completion_tokens", body.get("max_tokens", self.context))
        assert isinstance(wanted, int)
        return wanted

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """A reply without what only vLLM has."""
        for choice in body["choices"]:
            del choice["stop_reason"], choice["token_ids"], choice["message"]["reasoning"]
            choice["message"]["refusal"] = None
        body["usage"]["prompt_tokens_details"] = {"cached_tokens": 0}
        return {k: v for k, v in body.items() if not k.startswith("prompt_")}

    def event(self, chunk: dict[str, Any]) -> bytes:
        """One chunk as it is sent."""
        for choice in chunk["choices"]:
            choice.pop("stop_reason", None)
            choice.pop("token_ids", None)
        return b"data: " + _encode(chunk) + b"\n\n"

    def error(self, refused: Refused) -> Any:
        """See FakeVendor."""
        code = refused.code or ("rate_limit_exceeded" if refused.status == 429 else None)
        return {
            "error": {
                "message": refused.message,
                "type": refused.kind,
                "param": None,
                "code": code,
            }
        }

    def quota_headers(self, quota: Quota) -> dict[str, str]:
        """See FakeVendor."""
        return {
            "x-ratelimit-limit-requests": str(quota.requests),
            "x-ratelimit-remaining-requests": str(quota.remaining),
            "x-ratelimit-reset-requests": f"{quota.reset * 1000:.0f}ms",
        }

    def model_list(self) -> Any:
        """See FakeVendor."""
        models = [
            {"id": name, "object": "model", "created": 1, "owned_by": "fake"}
            for name in (*self.models, *self.reasoning)
        ]
        return {"object": "list", "data": models}

    def _reply(self, body: Any, text: str, user_text: str) -> Reply:
        stops = body.get("stop")
        sampling = Sampling(
            max_tokens=self.limit(body),
            temperature=body.get("temperature"),
            n=body.get("n"),
            stop=stops,
        )
        question, answers = self.sample(text, user_text, sampling, _schema(body))
        return Reply(
            id="chatcmpl-1",
            created=1,
            model=body["model"],
            chat=True,
            question=question,
            answers=answers,
            top=body["top_logprobs"] if body.get("logprobs") else None,
            prompt_top=None,
            token_ids=False,
            usage_in_stream=bool((body.get("stream_options") or {}).get("include_usage")),
        )

    def _message(self, body: Any, message: dict[str, Any], reason: str = "stop") -> Any:
        choice = {
            "index": 0,
            "message": {"role": "assistant"} | message,
            "logprobs": None,
            "finish_reason": reason,
        }
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [choice],
            "usage": {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16},
        }


def _schema(body: Any) -> Any:
    form = body.get("response_format") or {}
    return form["json_schema"]["schema"] if form.get("type") == "json_schema" else None


@dataclass(kw_only=True)
class FakeOpenRouter(FakeOpenAI):
    """openrouter.ai/api: comments in its streams, numbers for codes, errors inside a 200."""

    known: frozenset[str] = field(
        default=frozenset(
            [
                "model",
                "messages",
                "max_tokens",
                "temperature",
                "top_p",
                "top_k",
                "min_p",
                "repetition_penalty",
                "stop",
                "stream",
                "presence_penalty",
                "frequency_penalty",
                "logprobs",
                "top_logprobs",
                "response_format",
                "tools",
                "tool_choice",
                "provider",
                "include_reasoning",
            ]
        )
    )

    def routes(self) -> list[web.RouteDef]:
        """Its endpoints; the plain list of models needs no key."""
        return [
            web.get("/v1/models/user", self.list_models),
            web.post("/v1/chat/completions", self.generate),
        ]

    def check(self, body: Any) -> None:
        """Raise Refused for what OpenRouter refuses, in its words."""
        if body["model"] not in self.models:
            raise Refused(400, f"{body['model']} is not a valid model ID", kind="")
        if set(body) - self.known:
            message = "No endpoints found that can handle the requested parameters."
            raise Refused(404, message, kind="")
        super().check(body)

    def event(self, chunk: dict[str, Any]) -> bytes:
        """One chunk as it is sent, behind the comment that keeps proxies awake."""
        return b": OPENROUTER PROCESSING\n\n" + super().event(chunk)

    def error(self, refused: Refused) -> Any:
        """See FakeVendor."""
        return {"error": {"code": refused.status, "message": refused.message}}

    def quota_headers(self, quota: Quota) -> dict[str, str]:
        """See FakeVendor."""
        return {
            "X-RateLimit-Limit": str(quota.requests),
            "X-RateLimit-Remaining": str(quota.remaining),
            "X-RateLimit-Reset": f"{quota.reset:.3f}",
        }

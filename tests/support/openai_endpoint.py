"""An OpenAI-compatible endpoint in the test's own process, which remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

BOS = 256
LIKELY, UNLIKELY = -0.1, -3.0
_REFUSAL = {"error": {"message": "too long by 7 tokens"}}


class OpenAIEndpoint:
    """Answers chats with `answer(last message)`; texts that end with one of `likely` are likely.

    Answers in `cut_off` end at the token limit. What contains REFUSE is refused. It waits until
    `at_once` requests have come before it answers the first.
    """

    def __init__(self, *, answer: Callable[[str], str], likely: tuple[str, ...]) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.url = ""
        self.at_once = 1
        self.echoes = True
        self.cut_off: tuple[str, ...] = ()
        self._answer, self._likely = answer, likely
        self._enough = asyncio.Event()

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """What was asked at a path."""
        return [body for asked, body in self.requests if asked == path]

    async def chat(self, request: web.Request) -> web.Response:
        """POST /v1/chat/completions."""
        body = await self._read(request)
        question = body["messages"][-1]["content"]
        if "REFUSE" in question:
            return web.json_response(_REFUSAL, status=400)
        answer = self._answer(question)
        message = {"role": "assistant", "content": answer}
        return web.json_response({"choices": [{"message": message, **self._end(answer)}]})

    async def completions(self, request: web.Request) -> web.Response:
        """POST /v1/completions of tokens that are bytes, or BOS."""
        body = await self._read(request)
        choices: list[dict[str, Any]] = []
        for index, tokens in enumerate(body["prompt"]):
            text = bytes(token for token in tokens if token != BOS).decode()
            if "REFUSE" in text:
                return web.json_response(_REFUSAL, status=400)
            if not body.get("echo"):
                answer = self._answer(text)
                choices.append({"text": answer, **self._end(answer), "index": index})
                continue
            value = LIKELY if text.endswith(self._likely) else UNLIKELY
            values = [None, *[value] * len(tokens)] if self.echoes else [value]
            top = [None if one is None else {"x": one} for one in values]
            logprobs = {"token_logprobs": values, "top_logprobs": top}
            choices.append({"index": index, "text": text, "logprobs": logprobs})
        return web.json_response({"choices": choices})

    def _end(self, answer: str) -> dict[str, Any]:
        return {"index": 0, "finish_reason": "length" if answer in self.cut_off else "stop"}

    async def _read(self, request: web.Request) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        self.requests.append((request.path, body))
        if len(self.requests) >= self.at_once:
            self._enough.set()
        await self._enough.wait()
        return body


@asynccontextmanager
async def openai_endpoint(
    *, answer: Callable[[str], str], likely: tuple[str, ...] = ()
) -> AsyncIterator[OpenAIEndpoint]:
    """An endpoint on a free port of the loopback."""
    endpoint = OpenAIEndpoint(answer=answer, likely=likely)
    application = web.Application()
    application.router.add_post("/v1/chat/completions", endpoint.chat)
    application.router.add_post("/v1/completions", endpoint.completions)
    async with TestServer(application) as server:
        endpoint.url = str(server.make_url("")).rstrip("/")
        yield endpoint


def write_byte_tokenizer(folder: Path) -> Path:
    """A tokenizer for transformers whose tokens are bytes, with a BOS before every text.

    Other settings of a tokenizer in the folder, such as a chat template, are kept.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + place) for place, byte in enumerate(others)}
    special = {"id": BOS, "content": "<s>", "special": True, "single_word": False}
    special |= {"lstrip": False, "rstrip": False, "normalized": False}
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = {
        "version": "1.0",
        "added_tokens": [special],
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "use_regex": False,
            "trim_offsets": True,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}},
        },
        "model": {
            "type": "BPE",
            "vocab": {letters[byte]: byte for byte in range(256)} | {"<s>": BOS},
            "merges": [],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = folder / "tokenizer_config.json"
    kept = json.loads(settings.read_text()) if settings.exists() else {}
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<s>"}
    settings.write_text(json.dumps(kept | own))
    return folder

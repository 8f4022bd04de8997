"""Megatron's text generation server, faked as megatron-core 0.16.1 ships it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from enginehouse.testing.fake_engine import tokenizer
from enginehouse.testing.fake_engine.model import logprobs
from enginehouse.testing.fake_engine.requests import Sampling
from enginehouse.testing.fake_vendors.vendor import FakeVendor, Refused


@dataclass(kw_only=True)
class FakeMegatron(FakeVendor):
    """PUT /api; what it refuses, it refuses with a text and, mostly, status 200."""

    def routes(self) -> list[web.RouteDef]:
        """Its only endpoint."""
        return [web.put("/api", self.generate)]

    def authenticate(self, request: web.Request) -> None:
        """It asks for no key."""

    def answer(self, body: Any) -> Any:
        """See FakeVendor."""
        _check(body)
        (prompt,) = body["prompts"]
        budget = body["tokens_to_generate"]
        length = budget + len(prompt) // tokenizer.LONGEST_TOKEN  # at least
        if length > self.context:
            raise Refused(200, f"sequence length {length} is too long", kind="")
        greedy = body.get("top_k") == 1
        sampling = Sampling(max_tokens=budget, temperature=0.0 if greedy else body["temperature"])
        question, (answer,) = self.sample(prompt, prompt, sampling, None)
        whole = [*question.ids, *answer.ids]
        texts = [tokenizer.decode([token]) for token in whole]
        reply: dict[str, Any] = {
            "text": [prompt + answer.text],
            "segments": [texts],
            "tokens": [whole],
        }
        if body.get("logprobs"):
            reply["logprobs"] = [logprobs(question.weights, (), whole)[1:]]
        return reply

    def error(self, refused: Refused) -> Any:
        """See FakeVendor."""
        return refused.message


def _check(body: Any) -> None:
    temperature, top_k = body.get("temperature", 1.0), body.get("top_k", 0)
    refusals = (
        ("prompts" in body, 400, "prompts argument required"),
        (bool(body.get("prompts")), 400, "prompts is empty"),
        (
            0 < temperature <= 100,
            200,
            "temperature must be a positive number less than or equal to 100.0",
        ),
        (isinstance(top_k, int), 200, "top_k must be an integer equal to or greater than 0"),
        (0 <= top_k <= 1000, 200, "top_k must be equal to or greater than 0"),
        (isinstance(body.get("top_p", 0.0), float), 200, "top_p must be a positive float"),
        (not (body.get("top_p") and top_k), 200, "cannot set both top-k and top-p samplings."),
        (all(body.get("prompts", ())), 200, "Empty prompts require add_BOS=true"),
    )
    for fine, status, message in refusals:
        if not fine:
            raise Refused(status, message, kind="")

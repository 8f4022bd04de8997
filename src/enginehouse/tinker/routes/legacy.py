"""Tink's older way to sample: texts in, texts out, in one request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Request
from pydantic import Field

from enginehouse.core.errors import TinkerError
from enginehouse.core.strict_model import StrictModel
from enginehouse.tinker.application import current_user
from enginehouse.tinker.bodies import check_object, load_object
from enginehouse.tinker.names import Names
from enginehouse.tinker.repeats import Repeats
from enginehouse.tinker.sampling.base import SamplingEngine
from enginehouse.tinker.sampling_desk import SamplingDesk

_MOST_PROMPTS: Final = 1024


class SamplingParams(StrictModel):
    """Tink's sampling_params, with vLLM's defaults."""

    max_tokens: Annotated[int, Field(ge=1)] = 16
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = -1
    n: Annotated[int, Field(ge=1)] = 1
    seed: int | None = None
    stop: str | tuple[str, ...] | None = None


class LegacySample(StrictModel):
    """POST /api/v1/sample. `model_id` None is the base model."""

    model_id: str | None = None
    prompts: Annotated[tuple[str, ...], Field(min_length=1, max_length=_MOST_PROMPTS)]
    sampling_params: SamplingParams = SamplingParams()


@dataclass(frozen=True, kw_only=True)
class LegacySampler:
    """Answers the older requests."""

    names: Names
    desk: SamplingDesk
    engine: SamplingEngine

    async def answer(self, body: Mapping[str, Any], *, user: str) -> dict[str, Any]:
        """The completions of all prompts, in their order, `n` of each. Raises TinkerError."""
        request = check_object(body, LegacySample)
        parameters = request.sampling_params
        if parameters.n > self.desk.share:
            raise TinkerError(
                f"the request asks for {parameters.n} completions of a prompt, and "
                f"{self.desk.share} are the most here",
                fix="choose a smaller n",
            )
        name = request.model_id or self.names.base_model
        weights = await self.names.weights(name, user=user)
        self.desk.admit(user, count=len(request.prompts))
        cost = parameters.n * min(parameters.max_tokens, self.engine.max_length)
        fields = parameters.model_dump(exclude_none=True)
        if parameters.top_k <= 0:
            del fields["top_k"]

        async def complete(prompt: str) -> list[dict[str, Any]]:
            async with self.desk.slot(user, tokens=cost, sequences=parameters.n):
                reply = await self.engine.complete(
                    weights, "/v1/completions", {"prompt": prompt, **fields}
                )
            self.desk.count(user, reply, charged=cost)
            choices: list[dict[str, Any]] = reply["choices"]
            return choices

        answers = await asyncio.gather(*(complete(prompt) for prompt in request.prompts))
        choices = [choice for answer in answers for choice in answer]
        return {
            "model_id": name,
            "completions": [choice["text"] for choice in choices],
            "finish_reasons": [choice["finish_reason"] for choice in choices],
        }


def legacy_routes(legacy: LegacySampler, *, repeats: Repeats) -> APIRouter:
    """POST /api/v1/sample; /api/v1/asample is shared with the SDK."""
    router = APIRouter()

    @router.post("/api/v1/sample")
    async def sample(request: Request) -> dict[str, Any]:
        body = await load_object(await request.body())
        user = current_user(request)
        return await repeats.once(request, lambda: legacy.answer(body, user=user))

    return router

"""What is asked at many positions of a prompt: one request of one token for each beginning of it.

No engine has another way to score any ids at any position that works beside other requests. Where
there is a prefix cache, each beginning is computed only once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from enginehouse.core.errors import MalformedResponseError, TinkerError
from enginehouse.core.sampler import Sampler
from enginehouse.tinker.sampling import requests
from enginehouse.tinker.sampling.base import TokenPrompt, TopK

MOST_POSITIONS = 2048
T = TypeVar("T")


async def score_targets(
    sampler: Sampler, prompt: TokenPrompt, *, model: str, at_once: int
) -> NDArray[np.float32]:
    """The log-probabilities of the prompt's `targets`; 0 where those are -1.

    At most `at_once` sequences are in the engine. Raises TinkerError.
    """
    targets, tokens = prompt.targets, prompt.tokens.tolist()
    assert targets is not None
    scored = np.zeros(targets.shape, np.float32)
    rows = [row for row in range(len(targets)) if (targets[row] >= 0).any()]
    _require_few(rows, "target_prompt_logprobs")

    async def score(row: int) -> None:
        wanted = np.unique(targets[row][targets[row] >= 0]).tolist()
        values = await _scores(sampler, tokens[: row + 1], wanted, model=model)
        for column, token in enumerate(targets[row].tolist()):
            if token >= 0:
                scored[row, column] = values[token]

    await together([score(row) for row in rows], at_once=at_once)
    return scored


async def _scores(
    sampler: Sampler, tokens: Sequence[int], ids: Sequence[int], *, model: str
) -> dict[int, float]:
    values: dict[int, float] = {}
    for start in range(0, len(ids), requests.MOST_CANDIDATES):
        part = ids[start : start + requests.MOST_CANDIDATES]
        response = await sampler.sample(requests.scoring_ids(tokens, part, model=model))
        (token,) = response.completions[0].logprobs or ()
        given = {requests.id_of(one): one.logprob for one in token.top}
        if missing := set(part) - given.keys():
            raise MalformedResponseError(
                f"the engine gave no log-probability for the token ids {sorted(missing)[:5]}",
                why="it does not know logprob_token_ids, or does not have these tokens",
                fix="use vLLM 0.32 or newer, or --sampler hf",
            )
        values |= given
    return values


async def draw_alternatives(
    sampler: Sampler, prompt: TokenPrompt, *, model: str, at_once: int
) -> TopK:
    """The draws at each position after the first, as in `score_targets`. Raises TinkerError."""
    tokens, count = prompt.tokens.tolist(), prompt.alternatives
    rows = range(len(tokens) - 1)
    _require_few(rows, "prompt_alt_tokens_k")
    ids = np.zeros((len(rows), count), np.int32)
    logprobs = np.zeros((len(rows), count), np.float32)

    async def draw(row: int) -> None:
        # engines give the samples of one request the seeds that follow its own
        seed = None if prompt.seed is None else prompt.seed + row * count
        asked = requests.drawing(tokens[: row + 1], prompt, model=model, seed=seed)
        response = await sampler.sample(asked)
        for column in range(count):
            completion = response.completions[column % len(response.completions)]
            made = requests.sequence_of(completion, candidates=0)
            ids[row, column], logprobs[row, column] = made.tokens[0], made.logprobs[0]

    await together([draw(row) for row in rows], at_once=max(1, at_once // count))
    return TopK(token_ids=ids, logprobs=logprobs)


def _require_few(rows: Sequence[int], field: str) -> None:
    if len(rows) > MOST_POSITIONS:
        raise TinkerError(
            f"{field} asks at {len(rows)} positions, and this service answers {MOST_POSITIONS} at "
            "most",
            why="its engine needs a request for each position",
            fix="ask at fewer positions, or split the prompt among several requests",
        )


async def together(
    work: Sequence[Coroutine[Any, Any, T]], *, at_once: int | None = None
) -> list[T]:
    """Await all of it; when one fails, the others are cancelled, and have ended when it raises.

    At most `at_once` run at the same time.
    """
    gate = asyncio.Semaphore(at_once or max(1, len(work)))

    async def admitted(one: Coroutine[Any, Any, T]) -> T:
        async with gate:
            return await one

    tasks = [asyncio.ensure_future(admitted(one)) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in work:
            one.close()  # which may not have begun

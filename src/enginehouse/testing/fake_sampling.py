"""A SamplingEngine without a model, for faults and for speed.

What it answers follows from the weights' key, the tokens and the seed alone. It passes the same
cases as the real engines (sampling_cases.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.sampling import base
from enginehouse.tinker.sampling.base import LogprobScale, Sampled, TokenPrompt, TopK, Weights
from enginehouse.tinker.sampling.prompts import tokens_wanted

END = 0
_CONTEXT = 8  # tokens that a prediction depends on
_EMPTY = -99999.0


class FakeSampling:
    """Tokens are characters: the text of token t is chr(t), but for END.

    `vocabulary_size` is at least 128, so that texts of ASCII can be asked. `failures` are raised
    by the next requests, one each; while `running` is clear, requests wait. `unembedding` is what
    it describes as such.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int = 128,
        max_length: int = 512,
        max_loras: int = 4,
        logprobs: LogprobScale = "raw",
    ) -> None:
        self.failures: deque[Exception] = deque()
        self.running = asyncio.Event()
        self.running.set()
        self.requests = 0
        self.loads: list[str] = []
        self.unembedding: Mapping[str, Any] | None = None
        self._vocabulary_size = vocabulary_size
        self._max_length = max_length
        self._max_loras = max_loras
        self._logprobs = logprobs
        self._resident: dict[str, None] = {}  # the least recently used first

    @property
    def description(self) -> Mapping[str, Any]:
        """See SamplingEngine."""
        return {
            "engine": "fake",
            "log_probabilities": self._logprobs,
            "adapters": sorted(self._resident),
            **({"unembedding": self.unembedding} if self.unembedding else {}),
        }

    @property
    def max_length(self) -> int:
        """See SamplingEngine."""
        return self._max_length

    async def prepare(self, weights: Weights) -> None:
        """See SamplingEngine."""
        if weights.folder is None:
            return
        if weights.key not in self._resident:
            self.loads.append(weights.key)
        self._resident.pop(weights.key, None)
        self._resident[weights.key] = None
        for key in list(self._resident)[: -self._max_loras]:
            del self._resident[key]

    async def forget(self, weights: Weights) -> None:
        """See SamplingEngine."""
        self._resident.pop(weights.key, None)

    async def sample(self, weights: Weights, prompt: TokenPrompt) -> Sampled:
        """See SamplingEngine."""
        await self._admit(weights)
        count = tokens_wanted(prompt, max_length=self._max_length)
        self._check_ids(prompt.tokens.tolist())
        if isinstance(prompt.stop, tuple) and prompt.stop and isinstance(prompt.stop[0], int):
            self._check_ids([int(token) for token in prompt.stop])
        model = FakeModel(weights.key, self._vocabulary_size)
        tokens = prompt.tokens.tolist()
        sequences = [
            self._continue(model, tokens, prompt, count=count, index=index)
            for index in range(prompt.samples)
        ]
        sampled = Sampled(sequences=tuple(sequences))
        return _with_prompt_scores(sampled, model, tokens, prompt)

    async def complete(self, weights: Weights, path: str, body: Mapping[str, Any]) -> Any:
        """See SamplingEngine."""
        chat = path == "/v1/chat/completions"
        tokens, text, reason = await self._answer(weights, body, chat=chat)
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
        if chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        return {
            "id": "fake",
            "object": "chat.completion" if chat else "text_completion",
            "model": body.get("model"),
            "choices": [choice],
            "usage": {"prompt_tokens": tokens, "completion_tokens": len(text)},
        }

    async def stream(self, weights: Weights, path: str, body: Mapping[str, Any]) -> Any:
        """See SamplingEngine."""
        chat = path == "/v1/chat/completions"
        _, text, reason = await self._answer(weights, body, chat=chat)
        return _events(text, reason, chat=chat, model=body.get("model"))

    async def _admit(self, weights: Weights) -> None:
        self.requests += 1
        await self.running.wait()
        if self.failures:
            raise self.failures.popleft()
        await self.prepare(weights)

    async def _answer(
        self, weights: Weights, body: Mapping[str, Any], *, chat: bool
    ) -> tuple[int, str, str]:
        asked = "".join(m["content"] for m in body["messages"]) if chat else body["prompt"]
        tokens = [ord(letter) for letter in asked] if isinstance(asked, str) else list(asked)
        prompt = TokenPrompt(
            tokens=np.array(tokens, np.int32),
            max_tokens=body.get("max_tokens", 16),
            temperature=body.get("temperature", 1.0),
            seed=body.get("seed"),
        )
        (sequence,) = (await self.sample(weights, prompt)).sequences
        ids = sequence.tokens.tolist()
        text = text_of(ids[:-1] if ids and ids[-1] == END else ids)
        return len(tokens), text, "stop" if sequence.stopped else "length"

    def _check_ids(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if not 0 <= token < self._vocabulary_size:
                raise TinkerError(
                    f"token id {token} is outside the vocabulary of {self._vocabulary_size} tokens"
                )

    def _continue(
        self, model: FakeModel, tokens: list[int], prompt: TokenPrompt, *, count: int, index: int
    ) -> base.Sequence:
        seed = None if prompt.seed is None else f"{prompt.seed}/{index}"
        chance = random.Random(seed)
        made: list[int] = []
        logprobs: list[float] = []
        tops: list[NDArray[np.float64]] = []
        stopped = False
        while len(made) < count and not stopped:
            raw = model.logprobs([*tokens, *made])
            drawn_from = _filtered(raw, prompt)
            token = _draw(drawn_from, prompt, chance)
            given = drawn_from if self._logprobs == "scaled" and prompt.temperature > 0 else raw
            made.append(token)
            logprobs.append(float(given[token]))
            tops.append(given)
            stopped = _ends(made, prompt.stop)
        return base.Sequence(
            tokens=np.array(made, np.int32),
            logprobs=np.array(logprobs, np.float32),
            stopped=stopped,
            top=_top(tops, prompt.sample_top_k) if prompt.sample_top_k else None,
        )


class FakeModel:
    """The log-probabilities of the next token, which depend on the last tokens and the weights."""

    def __init__(self, key: str, vocabulary_size: int) -> None:
        self._key = key.encode()
        self._size = vocabulary_size

    def logprobs(self, context: Sequence[int]) -> NDArray[np.float64]:
        """Of every token after `context`."""
        digest = hashlib.blake2b(self._key, digest_size=8)
        digest.update(np.array(context[-_CONTEXT:], np.int32).tobytes())
        logits = 2 * np.random.default_rng(int.from_bytes(digest.digest())).normal(size=self._size)
        logprobs: NDArray[np.float64] = logits - np.logaddexp.reduce(logits)
        return logprobs


def _filtered(raw: NDArray[np.float64], prompt: TokenPrompt) -> NDArray[np.float64]:
    """The distribution that is sampled from: after temperature, top_k and top_p, normalized."""
    scaled = raw / (prompt.temperature or 1.0)
    scaled = scaled - np.logaddexp.reduce(scaled)
    order = np.argsort(-scaled)
    mass = np.exp(scaled[order])
    keep = np.cumsum(mass) - mass < prompt.top_p
    if prompt.top_k:
        keep[prompt.top_k :] = False
    cut = np.full_like(scaled, -np.inf)
    cut[order[keep]] = scaled[order[keep]]
    logprobs: NDArray[np.float64] = cut - np.logaddexp.reduce(cut)
    return logprobs


def _draw(logprobs: NDArray[np.float64], prompt: TokenPrompt, chance: random.Random) -> int:
    if prompt.temperature == 0:
        return int(np.argmax(logprobs))
    return chance.choices(range(len(logprobs)), weights=np.exp(logprobs).tolist())[0]


def _ends(made: list[int], stop: tuple[str, ...] | tuple[int, ...] | None) -> bool:
    if stop == ():
        return False
    text = text_of(made)
    return made[-1] == END or any(
        text.endswith(one) if isinstance(one, str) else made[-1] == one for one in stop or ()
    )


def text_of(tokens: Sequence[int]) -> str:
    """The text of tokens; END has none."""
    return "".join(chr(token) for token in tokens if token != END)


def _top(rows: Sequence[NDArray[np.float64] | None], k: int) -> TopK:
    ids = np.zeros((len(rows), k), np.int32)
    logprobs = np.full((len(rows), k), _EMPTY, np.float32)
    for at, row in enumerate(rows):
        if row is None:
            continue
        order = [token for token in np.argsort(-row)[:k] if np.isfinite(row[token])]
        ids[at, : len(order)] = order
        logprobs[at, : len(order)] = row[order]
    return TopK(token_ids=ids, logprobs=logprobs)


def _with_prompt_scores(
    sampled: Sampled, model: FakeModel, tokens: list[int], prompt: TokenPrompt
) -> Sampled:
    rows = [model.logprobs(tokens[:place]) for place in range(1, len(tokens))]
    scored = prompt.prompt_logprobs_from
    logprobs = top = targets = alternatives = None
    if scored is not None:
        first = max(1, scored)
        logprobs = np.full(len(tokens), np.nan, np.float32)
        for place in range(first, len(tokens)):
            logprobs[place] = rows[place - 1][tokens[place]]
        if prompt.prompt_top_k:
            known = [row if place >= first else None for place, row in enumerate(rows, start=1)]
            top = _top([None, *known], prompt.prompt_top_k)
    if prompt.targets is not None:
        targets = np.zeros(prompt.targets.shape, np.float32)
        for at, row in enumerate(rows):
            wanted = prompt.targets[at] >= 0
            targets[at, wanted] = row[prompt.targets[at, wanted]]
    if prompt.alternatives:
        alternatives = _alternatives(rows, prompt)
    return Sampled(
        sequences=sampled.sequences,
        prompt_logprobs=logprobs,
        prompt_top=top,
        target_logprobs=targets,
        alternatives=alternatives,
    )


def _alternatives(rows: Sequence[NDArray[np.float64]], prompt: TokenPrompt) -> TopK:
    chance = random.Random(prompt.seed)
    shape = (len(rows), prompt.alternatives)
    drawn = [
        [_draw(_filtered(row, prompt), prompt, chance) for _ in range(shape[1])] for row in rows
    ]
    ids = np.array(drawn, np.int32).reshape(shape)
    values = [row[ids[at]] for at, row in enumerate(rows)]
    return TopK(token_ids=ids, logprobs=np.array(values, np.float32).reshape(shape))


async def _events(text: str, reason: str, *, chat: bool, model: str | None) -> AsyncIterator[bytes]:
    for place, letter in enumerate([*text, ""]):
        last = place == len(text)
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason if last else None}
        choice |= {"delta": {"content": letter}} if chat else {"text": letter}
        yield b"data: " + json.dumps({"model": model, "choices": [choice]}).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"

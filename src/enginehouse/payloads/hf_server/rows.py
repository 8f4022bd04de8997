"""What is being generated: jobs (one request each), their prompts, and rows (one answer each)."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

from hf_server.errors import ApiError
from hf_server.requests import Sampling
from hf_server.text import Vocabulary, Writer

MOST_CONSTRAINING = 10.0  # seconds that one answer's constraint may delay all others


@dataclass
class TokenScore:
    """A token's natural-log probability, its rank (1 is most likely), and the most likely there."""

    token: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Piece:
    """The next piece of a streamed answer."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None


class Job:
    """One request and its answers. The event loop that made it owns `done` and `pieces`."""

    def __init__(self, *, stream: bool) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pieces: asyncio.Queue[Piece | ApiError | None] = asyncio.Queue()
        self.stream = stream
        self.rows: list[Row] = []
        self.prompts: list[Sequence] = []
        self.cancelled = False
        self.error: ApiError | None = None

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to generate."""
        return self.error is not None or all(row.finish_reason for row in self.rows)


@dataclass(eq=False)
class Sequence:
    """A prompt to be computed once, for one or several rows.

    `score` is how many of the most likely tokens are wanted at each of its places, None for none.
    """

    job: Job
    ids: list[int]
    rows: list[Row]
    adapter: str | None
    score: int | None = None
    scores: list[TokenScore] = field(default_factory=list)


class Row:
    """One answer being generated."""

    def __init__(
        self,
        job: Job,
        *,
        index: int,
        prompt: list[int],
        sampling: Sampling,
        most: int,
        vocabulary: Vocabulary,
        adapter: str | None,
        matcher: Any = None,
    ) -> None:
        self.job = job
        self.index = index
        self.prompt = prompt
        self.sampling = sampling
        self.adapter = adapter
        self.matcher = matcher
        self.ids: list[int] = []
        self.scores: list[TokenScore] = []
        self.finish_reason: str | None = None
        self.text = ""
        self._most = most
        stops = frozenset(sampling.stop_token_ids)
        self._ends = stops if sampling.ignore_eos else vocabulary.ends | stops
        self._eos = vocabulary.ends
        self._writer = Writer(vocabulary, sampling, pieces=job.stream)
        self._reported = 0
        self._constraining = 0.0  # seconds
        # A string, so that neighbouring seeds and answers get unrelated random numbers.
        seed = sampling.seed
        self._random = random.Random(None if seed is None else f"{seed}/{index}")

    @property
    def length(self) -> int:
        """The tokens of prompt and answer together."""
        return len(self.prompt) + len(self.ids)

    @property
    def last(self) -> int:
        """The token that the next step computes."""
        return self.ids[-1]

    @property
    def forbidden(self) -> list[int]:
        """The tokens that would end the answer before it has min_tokens."""
        return sorted(self._ends) if len(self.ids) < self.sampling.min_tokens else []

    def uniform(self) -> float:
        """The next random number in [0, 1), which depends on the seed alone, not on the batch."""
        return self._random.random()

    def fill(self, bitmask: Any, place: int) -> None:
        """Mark the tokens that the constraint allows next."""
        began = time.perf_counter()
        self.matcher.fill_next_token_bitmask(bitmask, place)
        self._constraining += time.perf_counter() - began

    def advance(self, token: int) -> None:
        """Take the next token; sets finish_reason when it was the last. Raises ApiError."""
        self.ids.append(token)
        ended = self.matcher is not None and self._constrain(token)
        if token in self._ends or ended:
            body = self.ids[:-1] if token in self._ends | self._eos else self.ids
            self._finish("stop", body)
        elif self._writer.add(self.ids):
            self._finish("stop", self.ids, stopped=True)
        elif len(self.ids) >= self._most:
            self._finish("length", self.ids)

    def _constrain(self, token: int) -> bool:
        began = time.perf_counter()
        accepted = self.matcher.accept_token(token)
        self._constraining += time.perf_counter() - began
        if not accepted:
            raise ApiError(500, f"token {token} does not fit the constraint")
        if self._constraining > MOST_CONSTRAINING:
            raise ApiError(
                400,
                f"applying the constraint took more than {MOST_CONSTRAINING:g} s, "
                "while other requests waited",
                param="structured_outputs",
            )
        return bool(self.matcher.is_terminated())

    def _finish(self, reason: str, ids: list[int], *, stopped: bool = False) -> None:
        self.text = self._writer.finish(ids, stopped=stopped)
        self.finish_reason = reason

    def piece(self) -> Piece:
        """What the answer gained since the last call."""
        new = self.ids[self._reported :]
        self._reported = len(self.ids)
        return Piece(self.index, self._writer.piece(), new, self.finish_reason)

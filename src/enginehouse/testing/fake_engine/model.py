"""Deterministic answers: a function of the weights, the prompt, the seed and the parameters.

Temperature 0 ignores the seed. Asked twice without a seed, the fake answers the same twice.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginehouse.testing.fake_engine import tokenizer
from enginehouse.testing.fake_engine.instances import instance, matching
from enginehouse.testing.fake_engine.requests import Sampling, StructuredOutputs
from enginehouse.testing.fake_engine.tool_calls import Function, written

_PROSE = (
    "the house engine keeps its steam and turns wheels for every mill that draws on it while "
    "water rises in a boiler so quiet hands may count what each day brings then lower their lamps "
    "because nothing here is lost not one sample nor any small answer"
)
_WORDS = _PROSE.split()
_DIGEST_LIMIT = 2**20


@dataclass(frozen=True)
class Answer:
    """One answer; `ids` hold the end-of-turn token if it ended by itself."""

    ids: list[int]
    text: str
    finish_reason: str
    stop_reason: str | None


@dataclass(frozen=True)
class Question:
    """A prompt for one set of weights; `user_text` is what canned answers are matched against.

    `functions` are those that it may call.
    """

    weights: str
    ids: list[int]
    user_text: str
    functions: Sequence[Function] = ()


def weights_digest(path: str) -> str:
    """What tells one checkpoint or adapter from another: its files, or just its name."""
    digest = hashlib.blake2b(digest_size=16)
    folder = Path(path)
    if not folder.is_dir():
        return hashlib.blake2b(path.encode(), digest_size=16).hexdigest()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(folder)} {file.stat().st_size}\n".encode())
            with file.open("rb") as opened:
                digest.update(opened.read(_DIGEST_LIMIT))
    return digest.hexdigest()


class Model:
    """Answers questions; `canned` maps a regular expression to the answer of what it matches."""

    def __init__(self, canned: Mapping[str, str] | None = None) -> None:
        self._canned = [(re.compile(p, re.DOTALL), text) for p, text in (canned or {}).items()]

    @classmethod
    def from_file(cls, path: str | None) -> Model:
        """Canned answers from a JSON object in a file, none without one."""
        return cls(json.loads(Path(path).read_text(encoding="utf-8")) if path else None)

    def answers(
        self,
        question: Question,
        request: Sampling,
        *,
        budget: int,
        structured: StructuredOutputs | None,
    ) -> list[Answer]:
        """As many answers as were asked for, at most `budget` tokens each."""
        stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
        made = []
        for index in range(request.n or 1):
            rng = random.Random(_sampling_key(question, request, index))
            ids = [*tokenizer.encode(self._text(question, rng, structured)), tokenizer.END_OF_TURN]
            while request.ignore_eos and len(ids) < budget:
                ids.pop()
                ids.extend(tokenizer.encode(" " + _sentence(rng)))
            made.append(_cut(ids, budget=budget, stops=stops))
        return made

    def _text(
        self, question: Question, rng: random.Random, structured: StructuredOutputs | None
    ) -> str:
        canned = self._canned_answer(question.user_text)
        if structured is None:
            made = written(list(question.functions), rng) if question.functions else _sentence(rng)
            return made if canned is None else canned
        if structured.choice:
            return canned if canned in structured.choice else rng.choice(structured.choice)
        if structured.regex is not None:
            if canned is not None and re.fullmatch(structured.regex, canned):
                return canned
            return matching(structured.regex, rng=rng)
        if canned is not None and _is_json(canned):
            return canned
        return json.dumps(instance(structured.json or {}, rng=rng), separators=(",", ":"))

    def _canned_answer(self, text: str) -> str | None:
        for pattern, answer in self._canned:
            if pattern.search(text):
                return answer
        return None


def logprobs(weights: str, context: Sequence[int], ids: Sequence[int]) -> list[float]:
    """Made-up natural-log probabilities of `ids` after `context`, in [-6.02, -0.02].

    A token's depends on the weights and on every token before it, so that a prompt's
    log-probabilities agree with those of the same tokens as an answer.
    """
    state = hashlib.blake2b(weights.encode(), digest_size=8)
    for token in context:
        state.update(token.to_bytes(4, "little"))
    made = []
    for token in ids:
        state.update(token.to_bytes(4, "little"))
        fraction = int.from_bytes(state.digest(), "little") / 2**64
        made.append(-0.02 - 6.0 * fraction)
    return made


def rivals(token: int, logprob: float, count: int) -> list[tuple[int, float]]:
    """`count` other tokens, each a little less likely than the one before."""
    first = 259 + (token * 7919) % 100_000
    others = [other for other in range(first, first + count + 1) if other != token][:count]
    return [(other, logprob - 0.5 * place) for place, other in enumerate(others, start=1)]


def _sampling_key(question: Question, request: Sampling, index: int) -> str:
    penalties = (
        request.repetition_penalty or 1.0,
        request.presence_penalty or 0.0,
        request.frequency_penalty or 0.0,
    )
    temperature = 1.0 if request.temperature is None else request.temperature
    key: tuple[Any, ...] = (question.weights, question.ids, penalties)
    if temperature > 0 and request.top_k != 1 and request.min_p != 1:
        shape = (temperature, request.top_p or 1.0, request.top_k or 0, request.min_p or 0.0)
        key = (*key, shape, request.seed, index)
    return hashlib.blake2b(repr(key).encode()).hexdigest()


def _sentence(rng: random.Random) -> str:
    words = rng.choices(_WORDS, k=rng.randint(4, 24))
    return " ".join(words).capitalize() + "."


def _cut(ids: list[int], *, budget: int, stops: list[str]) -> Answer:
    finished = len(ids) <= budget and ids[-1] == tokenizer.END_OF_TURN
    ids = ids[:budget]
    text = tokenizer.decode(ids)
    found = [(place, stop) for stop in stops if (place := text.find(stop)) >= 0]
    if not found:
        return Answer(ids, text, "stop" if finished else "length", None)
    place, stop = min(found)
    needed = next(
        count
        for count in range(1, len(ids) + 1)
        if len(tokenizer.decode(ids[:count])) >= place + len(stop)
    )
    return Answer(ids[:needed], text[:place], "stop", stop)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True

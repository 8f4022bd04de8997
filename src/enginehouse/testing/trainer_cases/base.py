"""What a case is given, and what the cases have in common."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.data import AdamStep, Datum, LoraSpec, LossRequest, LossResult
from enginehouse.tinker.trainers.base import Trainer

STEP = AdamStep(learning_rate=2e-3)
SPEC = LoraSpec(rank=4, seed=1)


@dataclass
class Subject:
    """The trainer under test, and the models of one case."""

    trainer: Trainer
    kill: Callable[[], Awaitable[None] | None]
    folder: Path
    prefix: str
    _models: set[str] = field(default_factory=set)

    async def model(self, name: str = "a", spec: LoraSpec = SPEC) -> str:
        """The id of a new adapter of this case."""
        await self.trainer.create(self.id(name), spec)
        return self.id(name)

    def id(self, name: str) -> str:
        """A model_id that no other case has, which `clear` unloads."""
        model_id = f"{self.prefix}:train:{name}"
        self._models.add(model_id)
        return model_id

    async def die(self) -> None:
        """End the trainer as by kill -9."""
        ended = self.kill()
        if inspect.isawaitable(ended):
            await ended

    async def clear(self) -> None:
        """Unload the case's models from a trainer that runs."""
        await self.trainer.start()
        for model_id in self._models:
            await self.trainer.unload(model_id)

    def datum(self, *, seed: int = 0, length: int = 12, **inputs: NDArray[Any]) -> Datum:
        """A sequence of random ids with random targets and weights 1, unless `inputs` differ."""
        numbers = np.random.default_rng(seed)
        size = min(self.trainer.info.vocabulary_size, 200)
        given: dict[str, NDArray[Any]] = {
            "target_tokens": numbers.integers(0, size, length),
            "weights": np.ones(length, np.float32),
        }
        tokens = numbers.integers(0, size, length).astype(np.int32)
        return Datum(tokens=tokens, inputs=given | inputs)

    def request(self, model_id: str, *data: Datum, **changes: Any) -> LossRequest:
        """A cross_entropy with gradients over `data`, by default one sequence."""
        values: dict[str, Any] = {"loss": "cross_entropy", "data": data or (self.datum(),)}
        return LossRequest(model_id=model_id, **values | changes)

    async def compute(self, model_id: str, *data: Datum, **changes: Any) -> LossResult:
        """The result of one such request, alone. Raises its error."""
        (result,) = await self.trainer.compute([self.request(model_id, *data, **changes)])
        if isinstance(result, TinkerError):
            raise result
        return result

    async def logprobs(self, model_id: str, *data: Datum) -> NDArray[np.float32]:
        """Of the targets of `data`, one after another, without gradients."""
        return flat(await self.compute(model_id, *data, backward=False))

    async def train(self, model_id: str, *, steps: int = 2, seed: int = 0) -> None:
        """A few steps, each on a sequence of its own."""
        for number in range(steps):
            await self.compute(model_id, self.datum(seed=seed + number))
            await self.trainer.optim_step(model_id, STEP)


_cases: dict[str, Callable[[Subject], Awaitable[None]]] = {}
CASES: Mapping[str, Callable[[Subject], Awaitable[None]]] = _cases


def case(run: Callable[[Subject], Awaitable[None]]) -> Callable[[Subject], Awaitable[None]]:
    """Make a function a case of its own name; its docstring is the promise."""
    _cases[run.__name__] = run
    return run


def flat(result: LossResult) -> NDArray[np.float32]:
    """The log-probabilities of all sequences, one after another."""
    return np.concatenate([output["logprobs"].ravel() for output in result.outputs])


def near(first: NDArray[Any], second: NDArray[Any], *, within: float = 1e-5) -> None:
    """Fail unless the two are equal, up to the rounding of float32."""
    assert first.shape == second.shape, f"the shapes {first.shape} and {second.shape} differ"
    gap = float(np.abs(first - second).max())
    assert gap <= within, f"they differ by {gap}, more than {within}"


def apart(first: NDArray[Any], second: NDArray[Any], *, by: float = 1e-4) -> None:
    """Fail unless training has told the two apart."""
    gap = float(np.abs(first - second).max())
    assert gap > by, f"they differ by {gap}, and should by more than {by}"


async def refused(asking: Awaitable[object], *words: str) -> TinkerError:
    """Return the TinkerError that is raised, which blames the user; fail without one."""
    try:
        result = await asking
    except TinkerError as error:
        blames_user(error, *words)
        return error
    raise AssertionError(f"TinkerError was not raised; the answer was {result}")


def blames_user(result: LossResult | TinkerError, *words: str) -> None:
    """Fail unless it is the user's mistake, in a message that has one of `words` if any."""
    assert isinstance(result, TinkerError), f"{result} instead of TinkerError"
    assert result.category == "user", f"the {result.category} is blamed: {result}"
    text = str(result).lower()
    assert not words or any(word in text for word in words), f"{text!r} has none of {words}"


def total(results: Sequence[LossResult | TinkerError]) -> list[float]:
    """The losses of requests that all succeeded."""
    values = []
    for result in results:
        if isinstance(result, TinkerError):
            raise result
        values.append(result.metrics["loss:sum"])
    return values

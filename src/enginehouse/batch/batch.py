"""Asks the prompts that a file of samples lacks; a failed answer is a line, not an exception."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from enginehouse.batch.prompt_files import PromptLine
from enginehouse.batch.sample_files import PrintedSamples, SampleFile, SampleLine, Source
from enginehouse.batch.settings import SampleSettings
from enginehouse.core.errors import (
    ConnectionFailedError,
    MalformedResponseError,
    ServerGoneError,
    UnauthorizedError,
    UnknownModelError,
    UnsupportedError,
    WireError,
)
from enginehouse.core.sampler import Sampler, SampleResponse
from enginehouse.results.summary import Progress, TaskProgress
from enginehouse.runtime.workers import run_workers

_MOST_IN_FLIGHT = 512
# errors that every other request would meet, too
_HOPELESS = (UnauthorizedError, UnknownModelError)


class ListingSampler(Sampler, Protocol):
    """A sampler that can ask its server for something smaller than an answer."""

    async def models(self) -> tuple[str, ...]:
        """The names that the server lists. Raises WireError."""
        ...


class SamplingSummary(msgspec.Struct, frozen=True, kw_only=True):
    """`answered` and `failed` count all prompts of the file, the rest is this command's share.

    `example` is the first failure in words.
    """

    out: str
    prompts: int
    answered: int
    failed: int
    asked: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    example: str | None


class Batch:
    """One command's share of a file of samples, written to `out` as it is answered."""

    def __init__(
        self,
        settings: SampleSettings,
        out: SampleFile | PrintedSamples,
        *,
        prompts: int,
        answered: int,
    ) -> None:
        self._settings = settings
        self._out = out
        self._prompts = prompts
        self._before = answered
        self._failed = 0
        self._prompt_tokens = self._completion_tokens = 0
        self._started = time.monotonic()
        self._example: str | None = None
        self.asked = 0

    async def ask(
        self,
        missing: Sequence[PromptLine],
        sampler: ListingSampler,
        source: Source,
        *,
        progress: Callable[[Progress], None],
    ) -> None:
        """Ask every prompt, a bounded number at a time."""
        self._started = time.monotonic()

        async def ask(prompt: PromptLine) -> None:
            self._settle(await _ask(prompt, sampler, source))

        await run_workers(
            ask,
            missing,
            count=min(self._settings.concurrency or _MOST_IN_FLIGHT, len(missing)),
            tick=lambda: progress(self._state()),
        )

    def _settle(self, line: SampleLine) -> None:
        self._out.write(line)
        self.asked += 1
        if line.error is not None:
            self._failed += 1
            self._example = self._example or line.error
        self._prompt_tokens += line.prompt_tokens or 0
        self._completion_tokens += line.completion_tokens or 0

    def summary(self) -> SamplingSummary:
        """The result so far."""
        return SamplingSummary(
            out=self._settings.out,
            prompts=self._prompts,
            answered=self._before + self.asked - self._failed,
            failed=self._failed,
            asked=self.asked,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            seconds=time.monotonic() - self._started,
            example=self._example,
        )

    def _state(self) -> Progress:
        elapsed = time.monotonic() - self._started
        done = self._before + self.asked
        answered = done - self._failed
        outcomes = {"answered": answered, "failed": self._failed}
        task = TaskProgress(task="samples", done=done, total=self._prompts, outcomes=outcomes)
        tokens = self._completion_tokens
        left = self._prompts - done
        return Progress(
            tasks=(task,),
            elapsed=elapsed,
            generated_tokens=tokens,
            tokens_per_second=tokens / elapsed if tokens and elapsed else None,
            seconds_left=left * elapsed / self.asked if self.asked else None,
        )


async def _ask(prompt: PromptLine, sampler: ListingSampler, source: Source) -> SampleLine:
    """Ask once. A WireError becomes the line's error, unless all other requests would meet it."""
    line = SampleLine(
        id=prompt.id,
        digest=prompt.digest,
        model=source.model,
        engine=source.engine,
        engine_version=source.engine_version,
        weights=source.weights,
    )
    try:
        response = await sampler.sample(prompt.request)
        _require_all(response, wanted=prompt.request.parameters.n)
    except _HOPELESS:
        raise
    except WireError as error:
        if isinstance(error, UnsupportedError) and error.status is None:
            raise  # the engine never does this, and nothing was sent
        if isinstance(error, ConnectionFailedError):
            await _require_alive(sampler, error)
        says = f"{error.message}: {error.why}" if error.why else error.message
        return msgspec.structs.replace(line, error=f"{type(error).__name__}: {says}")
    return msgspec.structs.replace(
        line,
        texts=tuple(completion.text for completion in response.completions),
        finish_reasons=tuple(completion.finish_reason for completion in response.completions),
        prompt_tokens=response.prompt_tokens,
        completion_tokens=response.completion_tokens,
        seconds=response.timing.elapsed,
    )


def _require_all(response: SampleResponse, *, wanted: int) -> None:
    if len(response.completions) != wanted:
        raise MalformedResponseError(
            f"{wanted} answers were requested, and {len(response.completions)} returned"
        )


async def _require_alive(sampler: ListingSampler, failure: ConnectionFailedError) -> None:
    """Raise ServerGoneError if the server no longer answers at all."""
    try:
        await sampler.models()
    except UnsupportedError:
        return
    except ConnectionFailedError:
        raise ServerGoneError(
            "the server is gone",
            why=failure.message,
            fix="look at its log and start it again; the same command asks what is missing",
        ) from failure
    except WireError:
        return

"""`enginehouse sample`: answers to a file of prompts; none is lost, none is asked twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from enginehouse.batch.configuration import SampleConfig
from enginehouse.batch.prompt_files import PromptLine, read_prompts
from enginehouse.batch.sample_files import (
    PrintedSamples,
    SampleFile,
    SampleLine,
    Source,
    sample_file,
)
from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import (
    ConfigurationError,
    ConnectionFailedError,
    MalformedResponseError,
    ServerGoneError,
    UnauthorizedError,
    UnknownModelError,
    UnsupportedError,
    WireError,
)
from enginehouse.core.messages import ChatPrompt
from enginehouse.core.sampler import SampleResponse
from enginehouse.deployment.base import Deployment
from enginehouse.deployment.opening import open_deployment
from enginehouse.results.summary import Progress, TaskProgress
from enginehouse.runtime.context import Context
from enginehouse.runtime.workers import run_workers
from enginehouse.store.layout import Layout

_MOST_IN_FLIGHT = 512
# errors that every other request would meet, too
_HOPELESS = (UnauthorizedError, UnknownModelError)


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


async def run_sampling(
    config: SampleConfig,
    context: Context,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
) -> SamplingSummary:
    """Ask the prompts that the file of samples lacks; may be cancelled at any time.

    Raises ConfigurationError if the file has samples of other prompts, parameters or another model
    (nothing was changed), StoreError, ServerGoneError, and what `open_deployment` does. Failed
    samples do not raise: see `require_samples`.
    """
    prompts = await asyncio.to_thread(read_prompts, config)
    with _opened(config, layout=context.layout) as out:
        answered = out.answered if isinstance(out, SampleFile) else {}
        missing = [prompt for prompt in prompts if prompt.id not in answered]
        work = _Sampling(config, out, prompts=len(prompts), answered=len(answered))
        if isinstance(out, SampleFile):
            out.require_same_prompts(prompts)
            if not missing:
                context.notify(f"every prompt has its answer in {config.out}: nothing to ask")
                return work.summary()
        try:
            async with open_deployment(
                config, context, concurrency=config.concurrency
            ) as deployment:
                source = _source(deployment)
                for prompt in missing:
                    _require_supported(prompt, deployment)
                if isinstance(out, SampleFile):
                    out.require_same_source(source)
                    if repair := out.begin():
                        context.notify(str(repair))
                await work.ask(missing, deployment.sampler, source, progress=progress)
        except BaseException:
            if isinstance(out, SampleFile) and work.asked:
                context.notify(f"{config.out} is whole: the same command asks what it lacks")
            raise
    return work.summary()


def require_samples(summary: SamplingSummary) -> None:
    """Raise WireError if a sample failed."""
    if summary.failed:
        again = "" if summary.out == "-" else "; the same command asks these again"
        raise WireError(
            f"{summary.failed:,} of {summary.prompts:,} samples failed",
            why=summary.example,
            fix=f"the field error of each says why{again}",
        )


@contextmanager
def _opened(config: SampleConfig, *, layout: Layout) -> Iterator[SampleFile | PrintedSamples]:
    if config.out == "-":
        yield PrintedSamples()
        return
    out = Path(config.out)
    if config.prompts != "-" and out.exists() and out.samefile(Path(config.prompts).expanduser()):
        raise ConfigurationError(
            f"--prompts and --out are the same file, {out}", fix="choose another --out"
        )
    with sample_file(out, layout=layout) as file:
        yield file


def _source(deployment: Deployment) -> Source:
    return Source(
        model=deployment.sampler.model,
        engine=deployment.engine.name,
        engine_version=deployment.provenance.engine_version,
        weights=deployment.provenance.weights_digest,
    )


def _require_supported(prompt: PromptLine, deployment: Deployment) -> None:
    """Raise UnsupportedError for what the engine does not support, before anything is sent."""
    wire, sampler = deployment.engine.wire, deployment.sampler
    chat = isinstance(prompt.request.prompt, ChatPrompt)
    dialect = wire.chat if chat else wire.completions
    if dialect is None:
        raise UnsupportedError(
            f"prompt {prompt.id!r}: {deployment.engine.name} takes no "
            + ("conversations" if chat else "texts to continue"),
            fix="give prompts without messages" if chat else "give messages, or --chat",
        )
    try:
        dialect.encode(
            prompt.request, model=sampler.model, capabilities=sampler.capabilities, stream=False
        )
    except (UnsupportedError, ConfigurationError) as error:
        error.message = f"prompt {prompt.id!r}: {error.message}"
        raise


class _Sampling:
    """The state of one command."""

    def __init__(
        self,
        config: SampleConfig,
        out: SampleFile | PrintedSamples,
        *,
        prompts: int,
        answered: int,
    ) -> None:
        self._config = config
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
        sampler: HTTPSampler,
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
            count=min(self._config.concurrency or _MOST_IN_FLIGHT, len(missing)),
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
            out=self._config.out,
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


async def _ask(prompt: PromptLine, sampler: HTTPSampler, source: Source) -> SampleLine:
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


async def _require_alive(sampler: HTTPSampler, failure: ConnectionFailedError) -> None:
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

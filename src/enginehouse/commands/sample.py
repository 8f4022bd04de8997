"""`enginehouse sample`: answers to a file of prompts; none is lost, none is asked twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from enginehouse.batch.batch import Batch, SamplingSummary
from enginehouse.batch.prompt_files import PromptLine, read_prompts
from enginehouse.batch.sample_files import PrintedSamples, SampleFile, Source, sample_file
from enginehouse.batch.settings import SampleSettings
from enginehouse.commands.configuration import SampleConfig
from enginehouse.core.errors import ConfigurationError, UnsupportedError, WireError
from enginehouse.core.messages import ChatPrompt
from enginehouse.deployment.base import Deployment
from enginehouse.deployment.opening import open_deployment
from enginehouse.results.summary import Progress
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout


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
    settings = config.settings
    prompts = await asyncio.to_thread(read_prompts, settings)
    with _opened(settings, layout=context.layout) as out:
        answered = out.answered if isinstance(out, SampleFile) else {}
        missing = [prompt for prompt in prompts if prompt.id not in answered]
        batch = Batch(settings, out, prompts=len(prompts), answered=len(answered))
        if isinstance(out, SampleFile):
            out.require_same_prompts(prompts)
            if not missing:
                context.notify(f"every prompt has its answer in {settings.out}: nothing to ask")
                return batch.summary()
        try:
            async with open_deployment(
                config.plan, context, concurrency=settings.concurrency
            ) as deployment:
                source = _source(deployment)
                for prompt in missing:
                    _require_supported(prompt, deployment)
                if isinstance(out, SampleFile):
                    out.require_same_source(source)
                    if repair := out.begin():
                        context.notify(str(repair))
                await batch.ask(missing, deployment.sampler, source, progress=progress)
        except BaseException:
            if isinstance(out, SampleFile) and batch.asked:
                context.notify(
                    f"{settings.out} is intact; run the same command again to complete it"
                )
            raise
    return batch.summary()


def require_samples(summary: SamplingSummary) -> None:
    """Raise WireError if a sample failed."""
    if summary.failed:
        again = "" if summary.out == "-" else "; run the same command to retry them"
        raise WireError(
            f"{summary.failed:,} of {summary.prompts:,} samples failed",
            why=summary.example,
            fix=f"the field error of each says why{again}",
        )


@contextmanager
def _opened(settings: SampleSettings, *, layout: Layout) -> Iterator[SampleFile | PrintedSamples]:
    if settings.out == "-":
        yield PrintedSamples()
        return
    out = Path(settings.out)
    if (
        settings.prompts != "-"
        and out.exists()
        and out.samefile(Path(settings.prompts).expanduser())
    ):
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

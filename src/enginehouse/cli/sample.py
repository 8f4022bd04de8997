"""enginehouse sample."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from enginehouse.batch.configuration import SampleConfig
from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import (
    ConfigOption,
    JsonOption,
    QuietOption,
    VerboseOption,
    with_config_options,
)
from enginehouse.core.errors import ConfigurationError
from enginehouse.deployment.configuration import merged, parse, read_yaml
from enginehouse.runtime.context import Context

if TYPE_CHECKING:
    from enginehouse.commands.sample import SamplingSummary


@with_config_options(SampleConfig)
def sample(
    *,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    given: dict[str, Any],
) -> None:
    """Sample answers to a file of prompts, into a file that the same command completes.

    A line of the prompts has `prompt` (a text), `messages` or `token_ids`, and may have an `id` and
    sampling parameters of its own. Status 6 if a sample failed.
    """
    console = Console(json=json, verbose=verbose, quiet=quiet)
    values = merged(read_yaml(config) if config else {}, given)
    settings = parse(SampleConfig, values, origin=str(config or "the command line"))
    printed = settings.out == "-"
    if printed and json:
        raise ConfigurationError(
            "--out - prints the samples, so that --json has no place", fix="leave --json out"
        )
    from enginehouse.commands.sample import require_samples, run_sampling
    from enginehouse.report.live import progress_display
    from enginehouse.report.terminal import make_console

    with progress_display(make_console(sys.stderr), sys.stderr) as display:
        summary = run_async(
            run_sampling(
                settings,
                Context(notify=console.note),
                progress=(lambda _: None) if quiet else display,
            )
        )
    if printed:
        console.note(_told(summary))
    else:
        console.result(summary, text=lambda: console.say(_told(summary)))

    require_samples(summary)


def _told(summary: SamplingSummary) -> str:
    before = summary.prompts - summary.asked
    told = f"{summary.out}: {summary.answered:,} of {summary.prompts:,} prompts answered"
    told += f" ({before:,} of them before)" if before else ""
    told += f", {summary.failed:,} failed"
    if summary.asked:
        told += f"; {summary.completion_tokens:,} tokens in {summary.seconds:,.1f} s"
    return told

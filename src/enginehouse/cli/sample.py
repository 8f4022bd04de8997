"""enginehouse sample."""

from __future__ import annotations

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import Given, with_config_options
from enginehouse.commands.configuration import SampleConfig
from enginehouse.core.errors import ConfigurationError
from enginehouse.runtime.context import Context


@with_config_options(SampleConfig)
def sample(*, given: Given[SampleConfig], console: Console) -> None:
    """Sample answers to a file of prompts. Running the same command again completes the output.

    A line of the prompts has `prompt` (a text), `messages` or `token_ids`, and may have an `id` and
    sampling parameters of its own. Exits with status 6 if a sample failed.
    """
    config = given.settings()
    printed = config.settings.out == "-"
    if printed and console.json:
        raise ConfigurationError(
            "--json cannot be used with --out -, which prints the samples", fix="remove --json"
        )
    from enginehouse.commands.sample import require_samples, run_sampling

    with console.progress() as progress:
        summary = run_async(run_sampling(config, Context(notify=console.note), progress=progress))
    before = summary.prompts - summary.asked
    text = f"{summary.out}: {summary.answered:,} of {summary.prompts:,} prompts answered"
    text += f" ({before:,} of them before)" if before else ""
    text += f", {summary.failed:,} failed"
    if summary.asked:
        text += f"; {summary.completion_tokens:,} tokens in {summary.seconds:,.1f} s"
    if printed:
        console.note(text)
    else:
        console.result(summary, text=lambda: console.say(text))
    require_samples(summary)

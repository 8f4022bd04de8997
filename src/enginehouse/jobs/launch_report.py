"""What is said about a launch and about a dry run, line by line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a launch does not wait for what only a dry run imports
    from enginehouse.jobs.dry_run import DryRun, Fit
    from enginehouse.jobs.plan import LaunchPlan
    from enginehouse.jobs.task_names import ResolvedTask

_TOKENS = 32_768  # of the KV cache, where what a GPU needs is stated: a few conversations


def launch_lines(plan: LaunchPlan) -> Iterator[str]:
    """What a user should know of a launch: tasks of another name, doubts, keys without effect."""
    for task in plan.tasks:
        if task.renamed:
            yield f"task: {_task(task)}"
    yield from _notes(plan.notes, plan.config.not_acted_on)


def dry_run_lines(dry_run: DryRun) -> Iterator[str]:
    """Everything that a dry run found. An element may have several lines."""
    yield "# The resolved configuration"
    yield dry_run.configuration
    for artifact in dry_run.artifacts:
        yield f"# {artifact.name}"
        yield artifact.text
    yield "# Tasks"
    for task in dry_run.tasks:
        yield _task(task)
        if not task.native and task.harness is None and task.nearest:
            yield f"  the nearest native tasks: {', '.join(task.nearest)}"
    yield "\n# Resources"
    yield f"GPUs: {dry_run.gpus_needed} needed, {dry_run.gpus_asked_for} asked for"
    yield f"memory (an estimate): {fit_in_words(dry_run.fit)}"
    for refusal in dry_run.refusals:
        yield f"`launch run` would be refused here: {refusal}"
    yield from _notes(dry_run.notes, dry_run.not_acted_on)


def fit_in_words(fit: Fit | None) -> str:
    """Whether the model fits, as far as that is known."""
    if fit is None:
        return "the model's size is unknown: no checkpoint of it is here, and the hub gave no sizes"
    said = f"{fit.weights / 1e9:.2f} GB of weights on each GPU ({fit.source})"
    if fit.cache_per_token is not None:
        said += f", {fit.cache_per_token / 1e3:.1f} kB of KV cache per token"
    if fit.available is None:
        return (
            f"{said}; the GPUs' memory is not known for the executor {fit.executor}: each needs "
            f"more than {_memory_needed(fit)}"
        )
    if fit.weights > fit.available:
        return f"{said}: does not fit into {fit.available / 1e9:.1f} GB"
    if fit.tokens is None:
        return f"{said}, of {fit.available / 1e9:.1f} GB"
    return f"{said}: fits into {fit.available / 1e9:.1f} GB with up to {fit.tokens:,} tokens"


def _memory_needed(fit: Fit) -> str:
    """What a GPU must have, with the KV cache of a few conversations where that is known."""
    if fit.cache_per_token is None:
        return f"{fit.weights / 1e9:.1f} GB"
    total = fit.weights + _TOKENS * fit.cache_per_token
    return f"{total / 1e9:.1f} GB for {_TOKENS:,} tokens at a time"


def _task(task: ResolvedTask) -> str:
    return f"{task.written} -> {task.name}: {task.meaning}"


def _notes(notes: Sequence[str], not_acted_on: Mapping[str, str]) -> Iterator[str]:
    for note in notes:
        yield f"note: {note}"
    for key, reason in not_acted_on.items():
        yield f"without effect: {key}: {reason}"

"""enginehouse launch: jobs from one YAML file, on this machine or on a cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import JsonOption, QuietOption, VerboseOption
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout

if TYPE_CHECKING:
    from enginehouse.jobs.plan import LaunchPlan
    from enginehouse.jobs.records import JobRecord

launch = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

JobArgument = Annotated[
    str, typer.Argument(help="A job's id, or the beginning of one, as `ls runs` lists it.")
]


@launch.command()
def run(
    *,
    config: Annotated[Path, typer.Option(help="The launch file, in YAML.")],
    override: Annotated[
        list[str] | None,
        typer.Option("--override", "-o", help="KEY=VALUE of the file, as Hydra writes it."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run, and write nothing.")
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Launch the job that a file describes; returns when it is submitted."""
    console = Console(json=json, verbose=verbose, quiet=quiet)
    from enginehouse.jobs.launch import launch as submit
    from enginehouse.jobs.launch_file import read_launch
    from enginehouse.jobs.plan import plan_launch

    settings = read_launch(config, overrides=override or ())
    plan = plan_launch(settings)
    if dry_run:
        _show_dry_run(plan, console)
        return
    for note in settings.notes:
        console.note(f"note: {note}")
    for key, reason in settings.not_acted_on.items():
        console.note(f"note: {key} has no effect: {reason}")
    record = run_async(submit(plan, Context(notify=console.note)))

    def text() -> None:
        console.say(f"job:    {record.id}")
        console.say(f"folder: {record.job.folder}")
        console.note(f"its state:  enginehouse launch status {record.short_id}")
        console.note(f"its output: enginehouse launch logs {record.short_id} --follow")

    console.result(record, text=text)


@launch.command()
def status(
    jobs: Annotated[
        list[str] | None, typer.Argument(help="Jobs; by default all that have not ended.")
    ] = None,
    *,
    json: JsonOption = False,
) -> None:
    """Show the state of jobs, as their executors tell it."""
    console = Console(json=json)
    from enginehouse.jobs.launch import refresh
    from enginehouse.jobs.records import JobRecords

    known = JobRecords(Layout.from_environment())
    chosen = [known.find(job) for job in jobs or ()]
    if not jobs:
        chosen = [record for record in known.all() if not record.status.state.ended]
    records = run_async(refresh(chosen, Context(notify=console.note)))
    console.result(records, text=lambda: _print_jobs(records, console))


@launch.command()
def logs(
    job: JobArgument,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing until the job has ended.")
    ] = False,
) -> None:
    """Print a job's output."""
    from enginehouse.jobs.launch import job_logs
    from enginehouse.jobs.records import JobRecords
    from enginehouse.report.visible_text import write_plain, write_text

    layout = Layout.from_environment()
    record = JobRecords(layout).find(job)
    write = write_text if sys.stdout.isatty() else write_plain

    async def print_all() -> None:
        async for piece in job_logs(record, Context(layout=layout), follow=follow):
            write(sys.stdout, piece)

    run_async(print_all())


@launch.command()
def kill(job: JobArgument, *, json: JsonOption = False) -> None:
    """End a job, and wait until nothing of it is left."""
    console = Console(json=json)
    from enginehouse.jobs.launch import kill as end
    from enginehouse.jobs.records import JobRecords

    layout = Layout.from_environment()
    record = run_async(end(JobRecords(layout).find(job), Context(notify=console.note)))
    console.result(record, text=lambda: _print_jobs([record], console))


@launch.command()
def resume(job: JobArgument, *, json: JsonOption = False) -> None:
    """Submit a job again that has ended; it continues where it was."""
    console = Console(json=json)
    from enginehouse.jobs.launch import resume as submit
    from enginehouse.jobs.records import JobRecords

    layout = Layout.from_environment()
    record = run_async(submit(JobRecords(layout).find(job), Context(notify=console.note)))
    console.result(record, text=lambda: _print_jobs([record], console))


def _show_dry_run(plan: LaunchPlan, console: Console) -> None:
    from enginehouse.jobs.dry_run import dry_run

    shown = dry_run(plan, Context(notify=console.note))

    def text() -> None:
        console.say("# The resolved configuration")
        console.say(shown.configuration)
        for artifact in shown.artifacts:
            console.say(f"# {artifact.name}")
            console.say(artifact.text)
        console.say(f"GPUs: {shown.gpus_needed} needed, {shown.gpus_asked_for} asked for")
        for note in shown.notes:
            console.say(f"note: {note}")
        for key, reason in shown.not_acted_on.items():
            console.say(f"without effect: {key}: {reason}")

    console.result(shown, text=text)


def _print_jobs(records: list[JobRecord], console: Console) -> None:
    from enginehouse.report.terminal import print_rows

    if not records:
        console.note("no jobs are running; `enginehouse launch ls runs` lists those that ended")
        return
    rows = [
        (
            record.short_id,
            record.status.state.value,
            record.name,
            record.executor,
            record.model,
            ", ".join(record.tasks),
            f"{record.created:%Y-%m-%d %H:%M}",
        )
        for record in records
    ]
    print_rows(("job", "state", "name", "executor", "model", "tasks", "launched (UTC)"), rows)
    for record in records:
        said = [record.status.reason, record.diagnosis]
        for line in "\n".join(filter(None, said)).splitlines():
            console.say(f"{record.short_id}: {line}")

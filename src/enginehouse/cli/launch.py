"""enginehouse launch: jobs from one YAML file, on this machine or on a cluster."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.export import export
from enginehouse.cli.options import JsonOption, QuietOption, VerboseOption
from enginehouse.core.errors import ConfigurationError, EnginehouseError
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout

if TYPE_CHECKING:
    from enginehouse.jobs.plan import LaunchPlan
    from enginehouse.jobs.records import JobRecord
    from enginehouse.results.summary import Report

RUN = "run"  # the folder of a job's run, in the job's folder: see jobs/plan.py

launch = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
listing = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
launch.add_typer(listing, name="ls", help="List tasks and past launches.")

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
    task: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", help="Only this task of the file; may be repeated."),
    ] = None,
    env_file: Annotated[
        Path | None,
        typer.Option(
            help="A file of NAME=VALUE lines, with mode 600, for variables that are not set here."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run without writing anything.")
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Launch the job that a file describes; returns when it is submitted."""
    console = Console(json=json, verbose=verbose, quiet=quiet)
    from enginehouse.jobs.launch import launch as submit
    from enginehouse.jobs.launch_file import read_launch
    from enginehouse.jobs.launch_report import launch_lines
    from enginehouse.jobs.plan import plan_launch
    from enginehouse.jobs.variables_file import read_variables_file

    for name, value in (read_variables_file(env_file) if env_file else {}).items():
        os.environ.setdefault(name, value)
    plan = plan_launch(read_launch(config, overrides=override or (), tasks=task or ()))
    if dry_run:
        _show_dry_run(plan, console)
        return
    for line in launch_lines(plan):
        console.note(line)
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
    """Show the state of jobs as reported by their executors."""
    console = Console(json=json)
    from enginehouse.jobs.launch import refresh
    from enginehouse.jobs.records import JobRecords

    known = JobRecords(Layout.from_environment())
    chosen = [known.find(job) for job in jobs or ()]
    if not jobs:
        chosen = [record for record in known.all() if not record.status.state.ended]
    records = run_async(refresh(chosen, Context(notify=console.note)))

    def text() -> None:
        if records:
            _print_jobs(records, console)
        else:
            console.note("no job is running; `enginehouse launch ls runs` lists those that ended")

    console.result(records, text=text)


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
def info(job: JobArgument, *, json: JsonOption = False) -> None:
    """Show everything about a job: where it is, how it ended, and its results so far."""
    console = Console(json=json)
    from enginehouse.jobs.launch import refresh
    from enginehouse.jobs.records import JobRecords
    from enginehouse.report.terminal import print_report

    layout = Layout.from_environment()
    context = Context(layout=layout, notify=console.note)
    (record,) = run_async(refresh([JobRecords(layout).find(job)], context))
    with tempfile.TemporaryDirectory() as into:
        report = _report(record, context, into=Path(into))

    def text() -> None:
        console.say(f"job:        {record.id} ({record.name})")
        console.say(f"state:      {_state_in_words(record)}")
        console.say(f"launched:   {record.created:%Y-%m-%d %H:%M:%S} UTC")
        console.say(f"executor:   {record.executor}")
        reference = record.handle.reference if record.handle else {}
        for name, value in reference.items():
            console.say(f"  {name + ':':<9} {value}")
        console.say(f"folder:     {record.job.folder}")
        console.say(f"run:        {record.job.folder / RUN}")
        console.say(f"model:      {record.model}")
        console.say(f"tasks:      {', '.join(record.tasks)}")
        if record.submissions > 1:
            console.say(f"submitted:  {record.submissions} times")
        if record.diagnosis:
            console.say(f"\n{record.diagnosis}")
        if report is not None:
            console.say("")
            print_report(report)

    console.result({"job": record, "report": report}, text=text)


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


@launch.command()
def convert(
    file: Annotated[
        Path, typer.Argument(help="A file with services, benchmarks and a cluster, in YAML.")
    ],
    *,
    service: Annotated[
        str | None, typer.Option(help="The model under test, if the benchmarks use several.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print a file of the NeMo Evaluator launcher 0.3 or later as a launch file."""
    console = Console(json=json)
    from enginehouse.jobs.conversion import convert as converted

    conversion = converted(file, service=service)
    for key, reason in conversion.left_out.items():
        console.note(f"omitted: {key}: {reason}")
    console.result(conversion, text=lambda: console.say(conversion.text.rstrip()))


def _report(record: JobRecord, context: Context, *, into: Path) -> Report | None:
    """The report of the job's run; None if there is no run yet, or it cannot be fetched."""
    from enginehouse.evaluation import summarise
    from enginehouse.jobs.launch import fetch
    from enginehouse.store.runs import open_run

    with suppress(EnginehouseError):
        folder = run_async(fetch(record, context, into=into)) / RUN
        if (folder / "journal.jsonl").exists():
            return summarise(open_run(context.layout, str(folder)))
    return None


def _state_in_words(record: JobRecord) -> str:
    status = record.status
    code = None if status.exit_code is None else f"exit code {status.exit_code}"
    details = ", ".join(filter(None, (status.reason, code)))
    return f"{status.state.value} ({details})" if details else status.state.value


launch.command()(export)


def _show_dry_run(plan: LaunchPlan, console: Console) -> None:
    from enginehouse.jobs.dry_run import dry_run
    from enginehouse.jobs.launch_report import dry_run_lines

    shown = dry_run(plan, Context(notify=console.note))

    def text() -> None:
        for line in dry_run_lines(shown):
            console.say(line)

    console.result(shown, text=text)


def _print_jobs(records: list[JobRecord], console: Console) -> None:
    from enginehouse.report.terminal import print_rows

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
        if record.status.reason or record.diagnosis:
            console.say(f"\n{record.short_id}: {_state_in_words(record)}")
        if record.diagnosis:
            console.say(record.diagnosis)


@listing.command("runs")
def list_runs(
    *,
    executor: Annotated[
        str | None, typer.Option("--executor", help="Only jobs of this executor.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            help="Only jobs launched since then: 2026-12-01, 2026-12-01T10:30, or 2d, 5h.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Show only this many jobs, the latest.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List every job that was launched, the latest first, as it was last seen."""
    console = Console(json=json)
    from enginehouse.jobs.records import JobRecords

    begin = None if since is None else _moment(since)
    known = JobRecords(Layout.from_environment()).all()
    records = [
        record
        for record in known
        if (executor is None or record.executor == executor)
        and (begin is None or record.created >= begin)
    ][:limit]

    def text() -> None:
        if records:
            _print_jobs(records, console)
        elif known:
            console.note(f"none of the {len(known)} jobs matches")
        else:
            console.note("no job was launched yet; `enginehouse launch run` launches one")

    console.result(records, text=text)


def _moment(text: str) -> datetime:
    """A day or a time of this machine's clock, or how long ago it was."""
    ago = re.fullmatch(r"(\d{1,6})([dhm])", text)
    try:
        if ago is None:
            return datetime.fromisoformat(text).astimezone()
        unit = {"d": "days", "h": "hours", "m": "minutes"}[ago[2]]
        return datetime.now(UTC) - timedelta(**{unit: int(ago[1])})
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(
            f"--since {text!r} is not a time",
            fix="write a day or a time (2026-12-01T10:30), or how long ago (2d, 5h, 30m)",
        ) from error


@listing.command("tasks")
def list_tasks(*, json: JsonOption = False) -> None:
    """List the tasks, with the launcher's names for them."""
    console = Console(json=json)
    from enginehouse.jobs.task_names import native_spellings, resolve_task
    from enginehouse.report.terminal import print_rows
    from enginehouse.tasks.registry import TASKS

    tasks = [resolve_task(name, base=Path()) for name in TASKS.names()]
    rows = [(task.name, ", ".join(native_spellings(task.name)), task.meaning) for task in tasks]
    console.result(
        [{"name": name, "also": also, "meaning": meaning} for name, also, meaning in rows],
        text=lambda: print_rows(("task", "also called", "meaning"), rows),
    )

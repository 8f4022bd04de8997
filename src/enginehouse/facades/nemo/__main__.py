"""`python -m enginehouse.facades.nemo`: the NeMo Evaluator launcher's command line.

The process becomes the `enginehouse` command that does the same, or runs one for each job.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from enginehouse.core.errors import EnginehouseError
from enginehouse.facades.nemo.watching import add_options, watch_commands
from enginehouse.jobs.variables_file import read_variables_file

_PROGRAM = "python -m enginehouse.facades.nemo"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments ask for. Does not return."""
    given = _parser().parse_args(arguments)
    commands = given.commands(given)
    if given.print_command:
        for words in commands:
            print(*words)  # noqa: T201 - that is what was asked for
        return
    sys.stdout.flush()
    programs = [[sys.executable, "-m", "enginehouse", *words] for words in commands]
    if len(programs) > 1:
        sys.exit(_run_all(programs, at_once=given.at_once))
    os.execv(sys.executable, programs[0])  # noqa: S606 - there is no shell


def _run_all(programs: Sequence[Sequence[str]], *, at_once: bool) -> int:
    """Run them one after the other, or at once; the highest exit code.

    Ctrl-C reaches them all, and SIGTERM ends them.
    """
    signal.signal(signal.SIGTERM, _end)
    groups = [programs] if at_once else [[program] for program in programs]
    return max(_run_together(group) for group in groups)


def _end(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    sys.exit(128 + signal.SIGTERM)


def _run_together(programs: Sequence[Sequence[str]]) -> int:
    running: list[subprocess.Popen[bytes]] = []
    try:
        running.extend(subprocess.Popen(program) for program in programs)
        while True:
            try:
                codes = [process.wait() for process in running]
                return max(code if code >= 0 else 128 - code for code in codes)
            except KeyboardInterrupt:
                continue  # they end by it, too
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM, description="The NeMo Evaluator launcher's commands, run by Enginehouse."
    )
    parser.add_argument("--version", action="store_true", help="show the version")
    parser.add_argument("-v", "--verbose", action="store_true", help="print tracebacks, too")
    parser.add_argument(
        "--print-command", action="store_true", help="print the arguments of enginehouse instead"
    )
    parser.set_defaults(
        commands=lambda given: [["--version"] if given.version else ["launch", "--help"]],
        at_once=False,
    )
    commands = parser.add_subparsers(title="commands")

    run = commands.add_parser("run", help="run an evaluation")
    run.add_argument("--config", help="the file")
    run.add_argument("--config-dir", help="the folder of the file that --config-name names")
    run.add_argument("--config-name", help="a file's name without .yaml")
    run.add_argument("--config-mode", choices=("hydra", "raw"), default="hydra")
    run.add_argument("--config-output", help="without effect: the job's record has it")
    run.add_argument("-o", "--override", action="append", default=[], help="KEY=VALUE")
    run.add_argument("-t", "--tasks", action="append", default=[], help="only this task")
    run.add_argument("-n", "--dry-run", action="store_true", help="show what would run")
    run.add_argument("--env-file", help="a file of variables (default: .env, if there is one)")
    run.set_defaults(commands=lambda given: [_run(given)])

    _add_commands_of_jobs(commands)
    return parser


def _add_commands_of_jobs(commands: Any) -> None:
    kill = commands.add_parser("kill", help="end jobs")
    kill.add_argument("ids", nargs="+")
    kill.set_defaults(commands=lambda given: _for_each("kill", given.ids))

    resume = commands.add_parser("resume", help="continue a job")
    resume.add_argument("id")
    resume.set_defaults(commands=lambda given: _for_each("resume", [given.id]))

    logs = commands.add_parser("logs", help="follow the output of jobs")
    logs.add_argument("ids", nargs="+")
    logs.set_defaults(commands=lambda given: _for_each("logs --follow", given.ids), at_once=True)

    info = commands.add_parser("info", help="show everything about jobs")
    info.add_argument("ids", nargs="+")
    for part in ("config", "artifacts", "logs"):
        info.add_argument(f"--{part}", action="store_true", help="part of what is shown")
    for part in ("logs", "artifacts"):
        info.add_argument(
            f"--copy-{part}", nargs="?", const=".", metavar="DIR", help=f"copy the {part}"
        )
    info.set_defaults(commands=_info)

    watch = commands.add_parser("watch", help="evaluate checkpoints as they appear")
    add_options(watch)
    watch.set_defaults(commands=_watch, at_once=True)

    status = commands.add_parser("status", help="show the state of jobs")
    status.add_argument("ids", nargs="*")
    status.add_argument("--json", action="store_true")
    status.set_defaults(commands=lambda given: [_status(given)])

    listing = commands.add_parser("ls", help="list tasks or runs")
    listing.add_argument("what", nargs="?", choices=("tasks", "runs"), default="tasks")
    listing.add_argument("--json", action="store_true")
    for option in ("executor", "since", "limit"):
        listing.add_argument(f"--{option}", help="of runs: only these")
    listing.set_defaults(commands=lambda given: [_listing(given)])

    export = commands.add_parser("export", help="export results")
    export.add_argument("ids", nargs="+")
    export.add_argument("--dest", default="local", help="local, mlflow, wandb …")
    export.add_argument("--format", choices=("json", "csv"), help="that of the file (json)")
    export.add_argument("--output-dir", "-out", help="the folder of the file (.)")
    export.add_argument("--output-filename", "-fname", help="the file's name")
    export.add_argument("--log-metrics", nargs="+", default=[], help="only these figures")
    export.add_argument("--copy-logs", action="store_true", help="without effect, as it says")
    export.add_argument("--only-required", action="store_true", help="without effect, as it says")
    export.add_argument("--config", help="a file with a section `export`")
    export.add_argument("-o", "--override", action="append", default=[], help="KEY=VALUE")
    export.set_defaults(commands=lambda given: [_export(given)])


def _run(given: argparse.Namespace) -> list[str]:
    if given.config and given.config_name:
        _refuse("give either --config or --config-name")
    if given.config_dir and not given.config_name:
        _refuse("--config-dir needs --config-name")
    if given.config_mode == "raw" and given.override:
        _refuse("--config-mode raw takes no overrides")
    if not given.config and not given.config_name:
        _refuse("name a file: --config FILE, or --config-dir FOLDER --config-name NAME")
    name = str(given.config_name).removesuffix(".yaml")
    file = given.config or str(Path(given.config_dir or ".") / f"{name}.yaml")
    variables = given.env_file or (".env" if Path(".env").is_file() else None)
    if given.config_output:
        _note("--config-output has no effect: `info` and the job's record have the configuration")
    words = ["launch", "run", "--config", file]
    for override in given.override:
        words += ["-o", override]
    for task in given.tasks:
        words += ["--task", task]
    return [
        *words,
        *(["--env-file", variables] if variables else []),
        *(["--dry-run"] if given.dry_run else []),
        *(["--verbose"] if given.verbose else []),
    ]


def _info(given: argparse.Namespace) -> list[list[str]]:
    ids = _different(given.ids)
    logs, artifacts = (part and Path(part) for part in (given.copy_logs, given.copy_artifacts))
    if (logs or artifacts) and not given.print_command:
        from enginehouse.facades.nemo.copying import copy_jobs

        try:
            copies = copy_jobs(ids, logs=logs, artifacts=artifacts)
        except EnginehouseError as error:
            _fail(error)
        for copy in copies:
            print(f"copied: {copy}")  # noqa: T201 - there is no Console yet
    return _for_each("info", ids)


def _watch(given: argparse.Namespace) -> list[list[str]]:
    try:
        variables = given.env_file or (".env" if Path(".env").is_file() else None)
        for name, value in (read_variables_file(Path(variables)) if variables else {}).items():
            os.environ.setdefault(name, value)
        if given.checkpoint_field or given.state_file or given.resubmit_previous_sessions:
            _note(
                "without effect: --checkpoint-field, --state-file, --resubmit-previous-sessions: "
                "the checkpoint is the deployment's model, and none is evaluated twice"
            )
        return watch_commands(given)
    except EnginehouseError as error:
        _fail(error)


def _for_each(command: str, ids: Sequence[str]) -> list[list[str]]:
    return [["launch", *command.split(), job] for job in _different(ids)]


def _different(references: Sequence[str]) -> list[str]:
    """The jobs, each once: an invocation's tasks are one job here."""
    return list(dict.fromkeys(map(_job, references)))


def _status(given: argparse.Namespace) -> list[str]:
    return ["launch", "status", *_different(given.ids), *(["--json"] if given.json else [])]


def _listing(given: argparse.Namespace) -> list[str]:
    words = ["launch", "ls", given.what, *(["--json"] if given.json else [])]
    for option in ("executor", "since", "limit"):
        if (value := getattr(given, option)) is not None:
            words += [f"--{option}", value]
    return words


def _export(given: argparse.Namespace) -> list[str]:
    words = ["launch", "export", *(_job(one) for one in given.ids), "--to", given.dest]
    if given.config:
        words += ["--config", given.config]
    here = "." if given.dest == "local" and not given.config else None
    settings = {
        "format": given.format,
        "output_dir": given.output_dir or here,
        "output_filename": given.output_filename,
        "log_metrics": json.dumps(given.log_metrics) if given.log_metrics else None,
        "copy_logs": "true" if given.copy_logs else None,
        "only_required": "true" if given.only_required else None,
    }
    own = [f"{name}={value}" for name, value in settings.items() if value]
    for override in (*own, *given.override):
        words += ["-o", override]
    return words


def _job(reference: str) -> str:
    """A job's id, of the launcher's `ID` or `ID.INDEX`."""
    return reference.partition(".")[0]


def _note(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201 - there is no Console yet


def _fail(error: EnginehouseError) -> NoReturn:
    _note(f"error: {error}")
    sys.exit(error.exit_code)


def _refuse(text: str) -> NoReturn:
    _note(f"error: {text}")
    sys.exit(2)


if __name__ == "__main__":
    main()

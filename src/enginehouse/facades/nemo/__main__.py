"""`python -m enginehouse.facades.nemo`: the NeMo Evaluator launcher's command line.

The process becomes the `enginehouse launch` command that does the same.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

_PROGRAM = "python -m enginehouse.facades.nemo"
_SUFFIXES = {"json": ".json", "csv": ".csv", "parquet": ".parquet"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments ask for. Does not return."""
    given = _parser().parse_args(arguments)
    words = given.words(given)
    command = [sys.executable, "-m", "enginehouse", *words]
    if given.print_command:
        print(*words)  # noqa: T201 - that is what was asked for
        return
    sys.stdout.flush()
    os.execv(sys.executable, command)  # noqa: S606 - there is no shell


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
        words=lambda given: ["--version"] if given.version else ["launch", "--help"]
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
    run.set_defaults(words=_run)

    for name, explanation in {"kill": "end a job", "resume": "continue a job"}.items():
        one = commands.add_parser(name, help=explanation)
        one.add_argument("id")
        one.set_defaults(words=lambda given, name=name: ["launch", name, _job(given.id)])

    logs = commands.add_parser("logs", help="follow a job's output")
    logs.add_argument("id")
    logs.set_defaults(words=lambda given: ["launch", "logs", "--follow", _job(given.id)])

    info = commands.add_parser("info", help="show everything about a job")
    info.add_argument("id")
    for part in ("config", "artifacts", "logs"):
        info.add_argument(f"--{part}", action="store_true", help="part of what is shown")
    info.set_defaults(words=lambda given: ["launch", "info", _job(given.id)])

    status = commands.add_parser("status", help="show the state of jobs")
    status.add_argument("ids", nargs="*")
    status.add_argument("--json", action="store_true")
    status.set_defaults(words=_status)

    listing = commands.add_parser("ls", help="list tasks or runs")
    listing.add_argument("what", nargs="?", choices=("tasks", "runs"), default="tasks")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(words=_listing)

    export = commands.add_parser("export", help="export results")
    export.add_argument("ids", nargs="+")
    export.add_argument("--dest", default="local", help="local, mlflow, wandb …")
    export.add_argument("--format", choices=tuple(_SUFFIXES), default="json")
    export.add_argument("--output-dir", "-out", default=".", help="the folder of the file")
    export.add_argument("--output-filename", "-fname", help="the file's name")
    export.add_argument("--config", help="a file with a section `export`")
    export.add_argument("-o", "--override", action="append", default=[], help="KEY=VALUE")
    export.set_defaults(words=_export)
    return parser


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


def _status(given: argparse.Namespace) -> list[str]:
    return ["launch", "status", *map(_job, given.ids), *(["--json"] if given.json else [])]


def _listing(given: argparse.Namespace) -> list[str]:
    return ["launch", "ls", given.what, *(["--json"] if given.json else [])]


def _export(given: argparse.Namespace) -> list[str]:
    words = ["launch", "export", *(_job(one) for one in given.ids)]
    if given.config:
        words += ["--config", given.config]
    elif given.dest == "local":
        name = given.output_filename or f"processed_results{_SUFFIXES[given.format]}"
        words += ["--to", given.format, "--out", str(Path(given.output_dir) / name)]
    else:
        words += ["--to", given.dest]
    for override in given.override:
        words += ["-o", override]
    return words


def _job(reference: str) -> str:
    """A job's id, of the launcher's `ID` or `ID.INDEX`."""
    return reference.partition(".")[0]


def _note(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201 - there is no Console yet


def _refuse(text: str) -> NoReturn:
    _note(f"error: {text}")
    sys.exit(2)


if __name__ == "__main__":
    main()

"""What the programs in a harness's environment have in common: a request in, messages out.

See harnesses/program.py, which starts them and reads the messages.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


class Reports:
    """Where a program says how far it is; one JSON object per line."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)  # or what it starts would keep the pipe open
        self._file = os.fdopen(descriptor, "w", buffering=1, encoding="utf-8")

    def progress(self, task: str, done: int, total: int | None) -> None:
        """How many samples of a task are done; `total` None if that is not known yet."""
        self._write({"progress": {"task": task, "done": done, "total": total}})

    def failure(self, failure: Failure) -> None:
        """Why the program gives up."""
        self._write({"failure": {**failure.details, "message": str(failure)}})

    def _write(self, message: dict[str, Any]) -> None:
        self._file.write(json.dumps(message) + "\n")


class Failure(Exception):  # noqa: N818  it becomes a HarnessError
    """The program cannot do what it was asked; `details` are kind, why and fix."""

    def __init__(self, message: str, **details: str | None) -> None:
        super().__init__(message)
        self.details = details


def run(main: Callable[[dict[str, Any], Reports], None]) -> NoReturn:
    """Read the request, call `main`, and end the process; a Failure is reported.

    Any other exception ends with Python's traceback in the log, and exit status 1.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--request", type=Path, required=True)
    parser.add_argument("--report", type=int, required=True)
    options = parser.parse_args()
    reports = Reports(options.report)
    request = json.loads(options.request.read_text(encoding="utf-8"))
    try:
        main(request, reports)
    except Failure as failure:
        reports.failure(failure)
        sys.exit(1)
    sys.exit(0)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)

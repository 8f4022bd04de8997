"""The fake as a Harness, and the registry with it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import msgspec

from enginehouse.core.errors import ConfigurationError, HarnessError, nearest
from enginehouse.harnesses.base import (
    HarnessEndpoint,
    HarnessResult,
    HarnessSettings,
    HarnessTask,
    OnHarnessProgress,
)
from enginehouse.harnesses.program import run_program
from enginehouse.harnesses.registry import HARNESSES
from enginehouse.provisioning.description import Description
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.installation import Installation, PythonPackage
from enginehouse.runtime.context import Context

_PROGRAM = Path(__file__).with_name("program.py")
_TASKS = (
    HarnessTask(name="sums", description="Additions, which are right or wrong", kind="generate"),
    HarnessTask(name="lengths", description="How many words an answer has", kind="generate"),
    HarnessTask(
        name="both", description="sums and lengths", kind="group", parts=("sums", "lengths")
    ),
    HarnessTask(name="measures", description="lengths", kind="group", parts=("lengths",)),
    HarnessTask(
        name="all", description="both, and lengths", kind="group", parts=("both", "measures")
    ),
    HarnessTask(
        name="brief", description="sums, asked briefly", kind="group", changed_parts=("sums",)
    ),
    HarnessTask(name="choices", description="Of these nothing is asked", kind="choose"),
    HarnessTask(
        name="exam", description="sums and choices", kind="group", parts=("sums", "choices")
    ),
)


class _ThisPython(PythonPackage):
    """The Python that runs this, with nothing installed for the harness."""

    def on_path(self, search: str) -> Path | None:  # noqa: ARG002
        """Always there."""
        return Path(sys.executable)

    async def describe(
        self,
        program: Path,
        *,
        managed: bool,  # noqa: ARG002
        log: Path,  # noqa: ARG002
        known_identity: str | None = None,  # noqa: ARG002
    ) -> Description:
        """Without running it."""
        return Description(
            version="1.0",
            variant="any",
            flags={},
            packages={},
            python=platform.python_version(),
            identity=str(program),
        )


class FakeHarness:
    """See Harness. It has no top_k, and no few-shot examples."""

    name = "fake"
    installation: Installation = _ThisPython(
        engine="fake", default_version="1.0", describe_payload=_PROGRAM, variables=()
    )

    def check(self, settings: HarnessSettings) -> None:
        """See Harness."""
        refused = [name for name in ("top_k", "few_shot") if getattr(settings, name) is not None]
        if refused:
            raise ConfigurationError(f"the fake harness has no {', '.join(refused)}")

    def find_file(self, task: str, *, include_path: Path | None) -> Path | None:  # noqa: ARG002
        """See SupportsTaskFiles. It runs none."""
        path = Path(task.partition("@")[0])
        if path.suffix != ".py":
            return None
        if not path.is_file():
            raise HarnessError(f"there is no file {path}", kind="unknown_task")
        return path

    async def list_tasks(
        self,
        environment: EngineEnvironment,  # noqa: ARG002
        *,
        include_path: Path | None,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> Sequence[HarnessTask]:
        """See Harness."""
        return _TASKS

    async def run(
        self,
        tasks: Sequence[str],
        *,
        endpoint: HarnessEndpoint,
        settings: HarnessSettings,
        environment: EngineEnvironment,
        folder: Path,
        context: Context,  # noqa: ARG002
        progress: OnHarnessProgress,
    ) -> Sequence[HarnessResult]:
        """See Harness."""
        self.check(settings)
        for task in tasks:
            _require_known(task)
        request = {
            **msgspec.structs.asdict(settings),
            "tasks": list(tasks),
            "folder": str(folder),
            "url": endpoint.url,
            "api_key": endpoint.api_key,
            "model": endpoint.model,
            "concurrency": endpoint.concurrency,
        }
        await run_program(
            _PROGRAM,
            request,
            environment=environment,
            folder=folder,
            log=folder / "fake.log",
            progress=progress,
        )
        return msgspec.json.decode((folder / "results.json").read_bytes(), type=list[HarnessResult])


def _require_known(task: str) -> None:
    names = [known.name for known in _TASKS]
    if task not in names:
        close = nearest(task, names)
        raise HarnessError(
            f"the fake harness has no task {task!r}",
            kind="unknown_task",
            fix=(f"did you mean {close}? " if close else "") + f"it has {', '.join(names)}",
        )


@contextmanager
def with_fake_harness() -> Iterator[None]:
    """In the block, this process's registry has the fake, as `fake`."""
    entries = HARNESSES._entries  # noqa: SLF001 - only tests add to them
    with patch.dict(entries, {"fake": f"{__name__}:FakeHarness"}):
        yield

"""What a harness's tasks are, kept once a list was made: making it takes half a minute."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from enginehouse.core.errors import StoreError
from enginehouse.harnesses.base import HarnessTask
from enginehouse.harnesses.program import run_program
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.programs import new_log
from enginehouse.runtime.context import Context
from enginehouse.store.files import write_whole


async def read_tasks(
    payload: Path,
    environment: EngineEnvironment,
    *,
    include_path: Path | None,
    context: Context,
) -> tuple[HarnessTask, ...]:
    """The tasks that a payload lists, by name, and those of `include_path`, which come first.

    The payload writes a JSON array of HarnessTask to the `file` of its request; `include_path` None
    asks for the harness's own. That list is kept for each managed environment. Raises HarnessError.
    """
    tasks = {task.name: task for task in await _own_tasks(payload, environment, context=context)}
    if include_path is not None:
        added = await _listed(payload, environment, include_path=include_path, context=context)
        tasks |= {task.name: task for task in added}
    return tuple(sorted(tasks.values(), key=lambda task: task.name))


async def _own_tasks(
    payload: Path, environment: EngineEnvironment, *, context: Context
) -> Sequence[HarnessTask]:
    if environment.key is None:  # packages may be added to a user's own install at any time
        return await _listed(payload, environment, include_path=None, context=context)
    kept = context.layout.harness_tasks / f"{environment.key}.json"
    with suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(kept.read_bytes(), type=list[HarnessTask])
    tasks = await _listed(payload, environment, include_path=None, context=context)
    with suppress(StoreError):  # keeping it only saves time
        write_whole(kept, msgspec.json.encode(tasks))
    return tasks


async def _listed(
    payload: Path,
    environment: EngineEnvironment,
    *,
    include_path: Path | None,
    context: Context,
) -> list[HarnessTask]:
    import tempfile

    context.notify(f"{environment.engine}: listing its tasks")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "tasks.json"
        await run_program(
            payload,
            {"file": str(file), "include_path": str(include_path) if include_path else None},
            environment=environment,
            folder=folder,
            log=new_log(context.layout, f"list-{environment.engine}"),
        )
        return msgspec.json.decode(file.read_bytes(), type=list[HarnessTask])

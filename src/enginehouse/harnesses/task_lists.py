"""What a harness's tasks are, kept once a list was made: making it takes half a minute."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

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
    more: Mapping[str, Any] | None = None,
) -> tuple[HarnessTask, ...]:
    """The tasks that a payload lists, by name, and those of `include_path`, which come first.

    The payload writes a JSON array of HarnessTask to the `file` of its request; `include_path` None
    asks for the harness's own. That list is kept for each managed environment. `more` is added
    to the request. Raises HarnessError.
    """
    own = await _own_tasks(payload, environment, context=context, more=more or {})
    tasks = {task.name: task for task in own}
    if include_path is not None:
        request = {**(more or {}), "include_path": str(include_path)}
        added = await _run_listing(payload, environment, request, context=context)
        tasks |= {task.name: task for task in added}
    return tuple(sorted(tasks.values(), key=lambda task: task.name))


async def _own_tasks(
    payload: Path, environment: EngineEnvironment, *, context: Context, more: Mapping[str, Any]
) -> Sequence[HarnessTask]:
    request = {**more, "include_path": None}
    if environment.key is None:  # packages may be added to a user's own install at any time
        return await _run_listing(payload, environment, request, context=context)
    kept = context.layout.harness_tasks / f"{environment.key}-tasks.json"
    with suppress(OSError, msgspec.DecodeError):
        return _decode(kept)
    tasks = await _run_listing(payload, environment, request, context=context)
    with suppress(StoreError):  # keeping it only saves time
        write_whole(kept, msgspec.json.encode(tasks))
    return tasks


async def _run_listing(
    payload: Path, environment: EngineEnvironment, request: Mapping[str, Any], *, context: Context
) -> list[HarnessTask]:
    context.notify(f"{environment.engine}: listing its tasks")
    with tempfile.TemporaryDirectory() as name:
        file = Path(name, "tasks.json")
        await run_program(
            payload,
            {**request, "file": str(file)},
            environment=environment,
            folder=file.parent,
            log=new_log(context.layout, f"list-{environment.engine}"),
        )
        return _decode(file)


def _decode(file: Path) -> list[HarnessTask]:
    return msgspec.json.decode(file.read_bytes(), type=list[HarnessTask])

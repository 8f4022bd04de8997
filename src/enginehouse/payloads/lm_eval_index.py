"""Finds tasks of lm-evaluation-harness without reading all of its YAML files every time."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

from harness_reports import Failure, write_whole
from lm_eval import tasks
from lm_eval.tasks import TaskManager

_ROOT = Path(tasks.__file__).parent


def make_manager(request: dict[str, Any]) -> TaskManager:
    """The index of tasks: of the folders that hold what is asked for, as all take half a minute.

    The request's `places` is where that is kept from one run to the next. Raises Failure.
    """
    own = [request["include_path"]] if request["include_path"] else []
    names = request["tasks"]
    if own:
        manager = _manager(own, request, include_defaults=False)
        if all(_is_complete(name, manager) for name in names):
            return manager
    file = Path(request["places"])
    if not file.exists():
        print("reading every task of lm-eval", flush=True)
        write_places(TaskManager().task_index, file)
    places = json.loads(file.read_text(encoding="utf-8"))
    folders = {str(_ROOT / places[name]) for name in names if places.get(name)}
    outermost = [one for one in sorted(folders) if folders.isdisjoint(_parents(one))]
    manager = _manager([*outermost, *own], request, include_defaults=False)
    for name in names:
        _require_known(name, {*places, *manager.all_tasks})
    if all(places.get(name) or _is_complete(name, manager) for name in names):
        return manager
    return _manager(own, request)


def write_places(index: Mapping[str, Any], file: Path) -> None:
    """Keep the folder of each of lm-eval's names; see `_place`.

    It is kept within the folder of all tasks, as the environment may be reached by another path.
    """
    write_whole(file, json.dumps({name: _place(name, index) for name in index}))


def _manager(paths: list[str], request: dict[str, Any], **more: Any) -> TaskManager:
    if "metadata" in signature(TaskManager).parameters:  # not before 0.4.9
        more["metadata"] = request["metadata"]
    return TaskManager(include_path=paths or None, **more)


def _parents(folder: str) -> set[str]:
    return {str(parent) for parent in Path(folder).parents}


def _place(name: str, index: Mapping[str, Any]) -> str:
    """The folder of lm-eval's that holds all that a name means; "" if only that of all tasks does.

    It must be a single one: of a tag, the index has only the members in the last folder.
    """
    folders = _folders(name, index)
    if not folders:
        return ""
    place = Path(os.path.commonpath(folders))
    if place == _ROOT:
        return ""
    return str(place.relative_to(_ROOT) if place.is_relative_to(_ROOT) else place)


def _folders(task: Any, index: Mapping[str, Any]) -> set[str]:
    """The folders of a task, or of a group or tag with all its members."""
    entry = index.get(task) if isinstance(task, str) else None
    if isinstance(entry, dict):  # before 0.4.10
        return set()
    if entry is None:  # a group's member, with settings of its own
        members = task.get("task") if isinstance(task, dict) else None
        folders = set()
    else:
        folder = entry.yaml_path and str(Path(entry.yaml_path).parent)
        folders = {folder} if folder else set()
        members = (entry.cfg or {}).get("task") if entry.kind.name == "GROUP" else None
        if entry.kind.name == "TAG":
            members = list(entry.tags)
    if isinstance(members, str):
        members = [members]
    return folders.union(*(_folders(one, index) for one in members or ()))


def _require_known(name: str, known: Collection[str]) -> None:
    if name in known:
        return
    close = get_close_matches(name, known, n=3)
    raise Failure(
        f"lm-eval has no task called {name!r}",
        kind="unknown_task",
        fix=(f"did you mean {' or '.join(close)}? " if close else "")
        + f"`enginehouse tasks --harness lm-eval WORD` searches all {len(known):,}",
    )


def _is_complete(name: Any, manager: TaskManager) -> bool:
    """Whether a task, or a group with all its members, is in the index."""
    entry = manager.task_index.get(name) if isinstance(name, str) else None
    if entry is None or name in manager.all_subtasks:
        return entry is not None
    members = (getattr(entry, "cfg", None) or {}).get("task")
    return isinstance(members, list) and all(_is_complete(one, manager) for one in members)

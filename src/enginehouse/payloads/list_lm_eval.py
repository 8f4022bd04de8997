"""Lists the tasks of lm-evaluation-harness, in its environment, as JSON in the request's `file`.

For those of lm-eval itself, their folders are kept in `places`, too.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from harness_reports import Reports, run, write_whole
from lm_eval.tasks import TaskManager
from lm_eval_index import write_places

# Settings of a group that do not change how its members are asked.
_OF_GROUPS = {
    *("group", "task", "tag", "group_alias", "task_alias"),
    *("aggregate_metric_list", "metadata", "include"),
}
_KINDS = {
    "generate_until": "generate",
    "multiple_choice": "choose",
    "loglikelihood": "choose",
    "loglikelihood_rolling": "choose",
}


def main(request: dict[str, Any], reports: Reports) -> None:  # noqa: ARG001
    """Read every task's YAML, which takes half a minute; no data set is loaded."""
    own = request["include_path"]
    manager = TaskManager(include_path=own, include_defaults=own is None)
    if own is None:
        write_places(manager.task_index, Path(request["places"]))
    tasks = [describe(name, entry) for name, entry in manager.task_index.items()]
    write_whole(Path(request["file"]), json.dumps(tasks))


def describe(name: str, entry: Any) -> dict[str, Any]:
    """One task, group or tag, as a HarnessTask."""
    if isinstance(entry, dict):  # before 0.4.10
        return _describe_old(name, entry)
    config = entry.cfg or {}
    if entry.kind.name == "TAG":
        return _group(name, f"{len(entry.tags)} tasks", parts=sorted(entry.tags))
    if entry.kind.name == "GROUP":
        return _described_group(name, config)
    source = " ".join(str(config[k]) for k in ("dataset_path", "dataset_name") if config.get(k))
    return {
        "name": name,
        "kind": _KINDS.get(config.get("output_type", ""), ""),
        "description": source,
    }


def _describe_old(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    if entry["type"] == "tag":
        return _group(name, f"{len(entry['task'])} tasks", parts=sorted(entry["task"]))
    if entry["type"] == "group":
        utilities = importlib.import_module("lm_eval.utils")
        config = utilities.load_yaml_config(entry["yaml_path"], mode="simple")
        return _described_group(name, config)
    return {"name": name, "kind": "", "description": ""}


def _described_group(name: str, config: dict[str, Any]) -> dict[str, Any]:
    parts: list[str] = []
    changed: list[str] = []
    _add_members(config, parts, changed, is_changed=False)
    count = len(parts) + len(changed)
    return _group(name, f"{count} tasks or groups", parts=parts, changed_parts=changed)


def _group(name: str, description: str, **members: list[str]) -> dict[str, Any]:
    return {"name": name, "kind": "group", "description": description, **members}


def _add_members(
    group: dict[str, Any], parts: list[str], changed: list[str], *, is_changed: bool
) -> None:
    """Add the members of a group, or of one inside it, that their own names stand for."""
    is_changed = is_changed or bool(group.keys() - _OF_GROUPS)
    members = group.get("task") or []
    for member in [members] if isinstance(members, str) else members:
        if isinstance(member, str):
            (changed if is_changed else parts).append(member)
        elif isinstance(member.get("task"), list):
            _add_members(member, parts, changed, is_changed=is_changed)
        elif name := member.get("group") or member.get("task"):
            own = is_changed or bool(member.keys() - _OF_GROUPS)
            (changed if own else parts).append(name)


if __name__ == "__main__":
    run(main)

"""Lists the tasks of lm-evaluation-harness, in its environment, as JSON in the request's `file`.

For those of lm-eval itself, their folders are kept in `places`, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness_reports import Reports, run, write_whole
from lm_eval.tasks import TaskManager
from lm_eval_index import write_places

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


def describe(name: str, entry: Any) -> dict[str, str]:
    """One task, group or tag, as a HarnessTask."""
    if isinstance(entry, dict):  # before 0.4.10
        kind = "group" if entry["type"] in {"group", "tag"} else ""
        return {"name": name, "kind": kind, "description": ""}
    config = entry.cfg or {}
    if entry.kind.name == "TAG":
        return {"name": name, "kind": "group", "description": f"{len(entry.tags)} tasks"}
    if entry.kind.name == "GROUP":
        members = config.get("task") or []
        count = 1 if isinstance(members, str) else len(members)
        return {"name": name, "kind": "group", "description": f"{count} tasks or groups"}
    source = " ".join(str(config[k]) for k in ("dataset_path", "dataset_name") if config.get(k))
    return {
        "name": name,
        "kind": _KINDS.get(config.get("output_type", ""), ""),
        "description": source,
    }


if __name__ == "__main__":
    run(main)

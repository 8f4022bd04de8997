"""Lists the tasks of an installed Inspect: those of its packages, or those in a folder.

Run in Inspect's environment, as harnesses/task_lists.py says.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import traceback
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from harness_reports import Failure, Reports, run, write_whole

_NAMED = 10  # tasks that an error message lists


def packaged_tasks() -> list[str]:
    """The tasks that installed packages register, such as "inspect_evals/gsm8k"; imports them."""
    for entry_point in entry_points(group="inspect_ai"):
        try:
            entry_point.load()
        except Exception:  # noqa: BLE001  one broken package must not hide the others
            traceback.print_exc()
    registry = importlib.import_module("inspect_ai._util.registry")
    found = registry.registry_find(lambda info: info.type == "task")
    return sorted(registry.registry_info(task).name for task in found)


def tasks_in(path: Path) -> list[str]:
    """The tasks in a file or in a folder's files, as "sums.py@addition"; imports none of them.

    The paths are relative to the folder.
    """
    list_tasks = importlib.import_module("inspect_ai").list_tasks
    root, glob = (path, "*") if path.is_dir() else (path.parent, path.name)
    return [f"{task.file}@{task.name}" for task in list_tasks(glob, root_dir=root.resolve())]


def unknown_task(name: str, known: list[str]) -> Failure:
    """The error for a name that is not among the known ones."""
    # "gsm8k" is close to "inspect_evals/gsm8k" for a person, not for difflib.
    ends = {known_name.rpartition("/")[2].rpartition("@")[2]: known_name for known_name in known}
    wanted = name.rpartition("/")[2].rpartition("@")[2]
    close = difflib.get_close_matches(wanted, list(ends), n=3, cutoff=0.6)
    if close:
        fix = f"did you mean {' or '.join(ends[end] for end in close)}?"
    elif len(known) > _NAMED:
        fix = "the tasks there are: enginehouse tasks --harness inspect [WORDS]"
    else:
        fix = f"known: {', '.join(known)}" if known else "name a task as package/task or FILE@task"
    return Failure(f"inspect has no task {name!r}", kind="unknown_task", fix=fix)


def _titles() -> dict[str, str]:
    """What the tasks of inspect_evals are about; its versions before 0.4 do not say."""
    try:
        listing = importlib.import_module("inspect_evals.metadata").load_listing()
    except (ImportError, AttributeError):
        return {}
    titles = {}
    for evaluation in listing.evals:
        for task in evaluation.tasks:
            titles[f"inspect_evals/{task.name}"] = evaluation.title
    return titles


def main(request: dict[str, Any], reports: Reports) -> None:  # noqa: ARG001
    """List the tasks."""
    titles: dict[str, str] = {}
    if request["include_path"]:
        names = tasks_in(Path(request["include_path"]))
    else:
        names, titles = packaged_tasks(), _titles()
    tasks = [
        {"name": name, "description": titles.get(name, ""), "kind": "generate"} for name in names
    ]
    write_whole(Path(request["file"]), json.dumps(tasks))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # listing needs no data
    run(main)

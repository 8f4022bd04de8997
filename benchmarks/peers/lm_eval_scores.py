"""What lm-eval's own filters and metrics make of given answers: run in its environment.

python lm_eval_scores.py REQUEST REPLY: the request has the folder of the tasks' YAML, a task, and
texts by document id; the reply has, by document id, every filtered answer and every metric.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager, get_task_dict  # type: ignore[import-not-found]


def main(request_file: str, reply_file: str) -> None:
    """Score the request's texts."""
    request = json.loads(Path(request_file).read_text())
    manager = TaskManager(include_path=request["folder"])
    (task,) = get_task_dict([request["task"]], manager).values()
    task.build_all_requests(rank=0, world_size=1)
    texts: dict[str, str] = request["texts"]
    chosen = [one for one in task.instances if str(one.doc_id) in texts]
    task._instances = chosen  # noqa: SLF001 (only these were asked)
    for one in chosen:
        one.resps = [texts[str(one.doc_id)]]
    task.apply_filters()
    reply: dict[str, dict[str, Any]] = {}
    for one in chosen:
        scored = {
            name: {
                "answer": one.filtered_resps[name],
                "metrics": task.process_results(one.doc, [one.filtered_resps[name]]),
            }
            for name in one.filtered_resps
        }
        reply[str(one.doc_id)] = scored
    Path(reply_file).write_text(json.dumps(reply, default=str))


if __name__ == "__main__":
    main(*sys.argv[1:])

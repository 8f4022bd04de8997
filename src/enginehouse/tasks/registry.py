"""The tasks there are, and how a name becomes one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from enginehouse.core.registry import Registry
from enginehouse.runtime.context import Notify
from enginehouse.tasks.base import Task, TaskInfo, implements


def problem_of(name: str, task_class: Any) -> str | None:
    """What is wrong with a plug-in's task; None if nothing is."""
    task = task_class()
    missing = [m for m in ("info", "load", "ask") if not implements(task, m)]
    if missing:
        return f"lacks: {', '.join(missing)}"
    if task.info.name != name:
        return f"is called {task.info.name} in its info: the entry point needs the same name"
    return None


TASKS: Final = Registry(
    "task",
    {
        "bfcl/multiple": "enginehouse.tasks.bfcl:Multiple",
        "bfcl/simple_python": "enginehouse.tasks.bfcl:SimplePython",
        "gpqa_diamond": "enginehouse.tasks.gpqa_diamond:GPQADiamond",
        "gsm8k": "enginehouse.tasks.gsm8k:GSM8K",
        "hellaswag": "enginehouse.tasks.hellaswag:HellaSwag",
        "ifeval": "enginehouse.tasks.ifeval:IFEval",
        "instructions": "enginehouse.tasks.instructions:Instructions",
    },
    group="enginehouse.tasks",
    problem=problem_of,
)


def load_task(name: str, *, base: Path | None = None) -> Task:
    """The task called `name`: a registered one, `reasoning_gym/<name>`, or a YAML file's path.

    A relative path starts at `base`, or at the working directory. Loads no data. Raises
    UnknownNameError, ConfigurationError for a bad YAML file, DataError if reasoning_gym is not
    installed.
    """
    from enginehouse.tasks.custom import load_custom
    from enginehouse.tasks.reasoning_gym import PREFIX, ReasoningGym

    task: Task
    if name.startswith(PREFIX):
        task = ReasoningGym(name.removeprefix(PREFIX))
    elif name.endswith((".yaml", ".yml")):
        task = load_custom((base or Path()) / Path(name).expanduser())
    else:
        task = TASKS.load(name)()
    return task


def list_tasks(*, notify: Notify = lambda _: None) -> tuple[TaskInfo, ...]:
    """Facts about every registered task, and reasoning_gym's as one family.

    `notify` hears of plug-ins that cannot be loaded.
    """
    from enginehouse.tasks.reasoning_gym import FAMILY

    loaded = TASKS.load_all(on_error=lambda error: notify(str(error)))
    return (*(load().info for load in loaded), FAMILY)

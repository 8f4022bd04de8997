"""Inspect, as a Harness."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from enginehouse.core.errors import ConfigurationError, HarnessError, nearest
from enginehouse.core.sampler import Capability
from enginehouse.engines.variables import inherited_variables
from enginehouse.harnesses.base import (
    HarnessEndpoint,
    HarnessResult,
    HarnessSettings,
    HarnessTask,
    OnHarnessProgress,
)
from enginehouse.harnesses.inspect.installation import INSTALLATION
from enginehouse.harnesses.inspect.log import read_result
from enginehouse.harnesses.program import run_program
from enginehouse.harnesses.task_lists import read_tasks
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.programs import PAYLOADS
from enginehouse.runtime.context import Context

_LIST = PAYLOADS / "inspect_tasks.py"
_EVAL = PAYLOADS / "inspect_eval.py"
# Models that grade answers, and sandboxes, are the user's own.
_FOR_GRADERS = "(OPENAI|AZUREAI|ANTHROPIC|GOOGLE|GEMINI|MISTRAL|OPENROUTER|TOGETHER|GROQ|AWS)_.*"
_FOR_SANDBOXES = "DOCKER_.*|KUBECONFIG"


class Inspect:
    """See Harness.

    A second run in the same folder starts from the beginning, and does not go through Inspect's
    own `eval-retry`, which asks a sample that was interrupted again from its first message: behind
    a gateway that replays this run's answers, every request that was answered is answered from its
    journal, within a sample as well, and the log is that of one whole run.
    """

    name = "inspect"
    installation = INSTALLATION

    def check(self, settings: HarnessSettings) -> None:
        """See Harness. Few-shot examples are a matter of each task."""
        if settings.few_shot is not None:
            raise ConfigurationError(
                "inspect has no setting for the number of few-shot examples",
                why="each of its tasks has its own, or none",
                fix="give it as one of the task's arguments, such as fewshot: 5",
            )

    def find_file(self, task: str, *, include_path: Path | None) -> Path | None:
        """See SupportsTaskFiles: FILE.py, with or without "@task"."""
        file = task.partition("@")[0]
        if not file.endswith(".py"):
            return None
        places = [Path(file).absolute()]
        if include_path is not None:
            places.append(include_path.absolute() / file)
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            close = include_path and nearest(file, [p.name for p in include_path.glob("*.py")])
            raise HarnessError(
                f"inspect has no task {task!r}",
                kind="unknown_task",
                why=f"there is no file {' or '.join(map(str, places))}",
                fix=f"did you mean {close}?" if close else "give the file's full path",
            )
        return path.resolve()

    async def list_tasks(
        self, environment: EngineEnvironment, *, include_path: Path | None, context: Context
    ) -> Sequence[HarnessTask]:
        """See Harness."""
        own = _absolute(include_path)
        return await read_tasks(
            _LIST, environment, include_path=Path(own) if own else None, context=context
        )

    async def run(
        self,
        tasks: Sequence[str],
        *,
        endpoint: HarnessEndpoint,
        settings: HarnessSettings,
        environment: EngineEnvironment,
        folder: Path,
        context: Context,
        progress: OnHarnessProgress,
    ) -> Sequence[HarnessResult]:
        """See Harness. Further kinds of HarnessError are in payloads/inspect_failures.py."""
        self.check(settings)
        request = {
            **msgspec.structs.asdict(settings),
            "include_path": _absolute(settings.include_path),
            "tasks": [
                {"name": task, "spec": self._specification(task, settings.include_path)}
                for task in tasks
            ],
            "folder": _absolute(folder),
            "model": endpoint.model,
            "chat": endpoint.chat,
            "has_tools": Capability.TOOLS in endpoint.capabilities.supports,
            "concurrency": endpoint.concurrency,
        }
        await run_program(
            _EVAL,
            request,
            environment=environment,
            folder=folder,
            log=folder / "inspect.log",
            variables={
                **_variables(folder, context),
                "ENGINEHOUSE_BASE_URL": f"{endpoint.url}/v1",
                "ENGINEHOUSE_API_KEY": endpoint.api_key,
            },
            progress=progress,
        )
        return [
            read_result(folder / "results", number=number, version=environment.version)
            for number in range(len(tasks))
        ]

    def _specification(self, task: str, include_path: Path | None) -> str:
        """What Inspect loads: a task's name, or the absolute path of a file with the name in it."""
        path = self.find_file(task, include_path=include_path)
        if path is None:
            return task
        _, separator, name = task.partition("@")
        return f"{path}{separator}{name}"


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _variables(folder: Path, context: Context) -> dict[str, str]:
    """What Inspect's process has besides the usual variables; nothing goes to the user's home."""
    home = folder.absolute() / "home"
    return {
        **inherited_variables(_FOR_GRADERS, _FOR_SANDBOXES),
        "XDG_DATA_HOME": str(home / "data"),
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_CONFIG_HOME": str(home / "config"),
        # Data sets that tasks download themselves are for every run; the hub's stay where they are.
        "XDG_CACHE_HOME": str(context.layout.harness_data("inspect")),
        "HF_HOME": _hub_home(),
        "INSPECT_DISPLAY": "plain",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "PYTHONHASHSEED": "0",  # or sets in prompts have another order in a second run
    }


def _hub_home() -> str:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return os.environ.get("HF_HOME") or str(Path(cache) / "huggingface")

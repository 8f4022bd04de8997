"""What a harness is. Each is a folder in this one.

A harness runs unchanged, as a program in its own environment, and asks the gateway. What it
reports is read into the structs here, from which a run's journal is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec

from enginehouse.core.sampler import Capabilities
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.installation import Installation
from enginehouse.runtime.context import Context
from enginehouse.tasks.base import Measure, Outcome


class HarnessTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task that a harness has: `name` as the harness writes it, without "lm-eval:".

    `kind` is "generate", "choose" (log-likelihoods), "group", or "" where only loading would tell.
    `parts` are the tasks and groups that a group asks as they are by themselves, and
    `changed_parts` those to which it gives settings of its own; neither has their parts in turn.
    """

    name: str
    description: str = ""
    kind: str = ""
    parts: tuple[str, ...] = ()
    changed_parts: tuple[str, ...] = ()


class HarnessEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where and whom a harness asks: `url` without /v1, and the model by the name it is served as.

    `tokenizer` is the served checkpoint's folder, None where that is not on this machine. `chat`:
    the model has a chat template. `concurrency` is how many requests it should have in flight.
    `max_model_len` is the longest prompt and answer together, in tokens, None if nothing says it.
    """

    url: str
    api_key: str
    model: str
    tokenizer: Path | None
    chat: bool
    capabilities: Capabilities
    concurrency: int
    max_model_len: int | None = None


class HarnessSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How tasks are run; None leaves it to the harness. `limit` bounds the items of each task.

    `include_path` is a folder with the user's own tasks. `samples` is how often each item is
    asked. `request_timeout` is in seconds, for each request, and `max_retries` is how often the
    harness itself sends one again. `arguments` are the task's own. A harness refuses what it cannot
    do with a ConfigurationError, before it asks anything.
    """

    limit: int | None = None
    include_path: Path | None = None
    seed: int | None = None
    samples: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    request_timeout: float | None = None
    max_retries: int | None = None
    system: str | None = None
    few_shot: int | None = None
    arguments: Mapping[str, Any] = msgspec.field(default_factory=dict)


class HarnessMetric(msgspec.Struct, frozen=True, kw_only=True):
    """One of the harness's own figures, with its own standard error where it states one.

    `filter` is lm-eval's, or the scorer and reducer of inspect; "" where there is none.
    """

    name: str
    value: float
    standard_error: float | None = None
    filter: str = ""
    higher_is_better: bool | None = None

    @property
    def label(self) -> str:
        """The name with the filter, as in "exact_match (strict-match)"; unique within a task."""
        return f"{self.name} ({self.filter})" if self.filter else self.name


class HarnessSample(msgspec.Struct, frozen=True, kw_only=True):
    """What a harness recorded of one item: `item` is its id, unique within the task.

    `prompt` and `answer` are for people to read. `outcome` is that of the task's headline metric
    where that is 0 or 1 for each sample, None where it is not. `truncated`: its answer ended at the
    token limit; `shortened`: the harness cut off the beginning of its prompt, which was longer than
    the model takes. `failure` says why the harness could not ask or score it.
    """

    item: str
    position: int
    repeat: int = 0
    prompt: str = ""
    answer: str | None = None
    target: str | None = None
    outcome: Outcome | None = None
    measures: Mapping[str, Measure] = msgspec.field(default_factory=dict)
    truncated: bool = False
    shortened: bool = False
    failure: str | None = None


class HarnessResult(msgspec.Struct, frozen=True, kw_only=True):
    """A task's result. `headline` is the label of one of `metrics`.

    `task_version` is the harness's; `configuration_digest` is the SHA-256 of the task's whole
    configuration as the harness resolved it. `subtasks` is what a group consists of; its samples
    are theirs, and it has none itself.
    """

    task: str
    harness: str
    harness_version: str
    task_version: str
    configuration_digest: str
    headline: str
    metrics: Sequence[HarnessMetric]
    samples: Sequence[HarnessSample]
    full_size: int | None = None
    source: str = ""
    licence: str = ""
    subtasks: tuple[str, ...] = ()


class HarnessProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a task is, in samples; `total` is None until it is known."""

    task: str
    done: int
    total: int | None


OnHarnessProgress = Callable[[HarnessProgress], None]


class Harness(Protocol):
    """One harness; it holds no state."""

    name: str
    installation: Installation

    def check(self, settings: HarnessSettings) -> None:
        """Raise ConfigurationError, in words, for settings that this harness does not have."""
        ...

    async def list_tasks(
        self, environment: EngineEnvironment, *, include_path: Path | None, context: Context
    ) -> Sequence[HarnessTask]:
        """Every task that the installed harness has. Raises HarnessError."""
        ...

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
        """Run the tasks, in `folder`, which a second run after an interruption is given again.

        Cancelling it ends the harness and all its descendants. Raises HarnessError (kinds
        "unknown_task" with the nearest names, "needs_logprobs", "gated_data", "ended" with the
        log's path), and what `check` does.
        """
        ...


@runtime_checkable
class SupportsTaskFiles(Protocol):
    """A Harness whose tasks may be in files of the user's own, which are not in its list."""

    def find_file(self, task: str, *, include_path: Path | None) -> Path | None:
        """The file that a task's name begins with; None if it is no file's.

        A relative path starts at the working directory, or else at `include_path`. Raises
        HarnessError (kind "unknown_task") for a file that does not exist.
        """
        ...

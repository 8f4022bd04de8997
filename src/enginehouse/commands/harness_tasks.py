"""The tasks of other projects' harnesses in a run: each is asked through a gateway of its own."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from enginehouse.commands.configuration import EvaluationConfig, EvaluationSettings
from enginehouse.commands.harness_records import Traffic, records_of
from enginehouse.core.errors import ConfigurationError, HarnessError, nearest
from enginehouse.core.sampler import Capabilities, Capability
from enginehouse.deployment.base import Target
from enginehouse.deployment.served_checkpoint import served_checkpoint
from enginehouse.engines.registry import load_engine
from enginehouse.evaluation import EvaluationSpec, TaskSpec
from enginehouse.evaluation.foreign import ForeignTraffic, OnForeignProgress
from enginehouse.evaluation.records import Record
from enginehouse.gateway.configuration import GatewayOptions, GatewaySettings
from enginehouse.gateway.service import Gateway, open_gateway
from enginehouse.harnesses.base import (
    Harness,
    HarnessEndpoint,
    HarnessProgress,
    HarnessSettings,
    HarnessTask,
    OnHarnessProgress,
    SupportsTaskFiles,
)
from enginehouse.harnesses.contents import Contents, contents_of
from enginehouse.harnesses.names import harness_task_name
from enginehouse.harnesses.registry import load_harness
from enginehouse.provisioning.environments import EngineEnvironment, find_environment
from enginehouse.runtime.context import Context
from enginehouse.store.runs import Run

Result = TypeVar("Result")
IN_FLIGHT: Final = 128
"""Requests that a harness has in flight if the user does not say how many.

The gateway holds back what the engine does not take.
"""
_WITHOUT_EFFECT: Final = ("name", "concurrency", "request_timeout", "max_retries")


@dataclass(frozen=True, kw_only=True)
class ReadyHarness:
    """A harness and its environment."""

    harness: Harness
    environment: EngineEnvironment


async def ready_harness(name: str, *, version: str | None, context: Context) -> ReadyHarness:
    """The harness of that name, installed if it is not.

    Raises UnknownNameError, ConfigurationError for a version that is not published, and
    ProvisioningError.
    """
    harness = load_harness(name)
    environment = await find_environment(
        harness.installation, python=None, version=version, variant=None, context=context
    )
    return ReadyHarness(harness=harness, environment=environment)


async def list_tasks_of(
    name: str, *, include_path: Path | None, version: str | None, context: Context
) -> Sequence[HarnessTask]:
    """Every task of a harness, by the names that a run takes, such as "lm-eval:piqa".

    Raises as `ready_harness` does, and HarnessError.
    """
    one = await ready_harness(name, version=version, context=context)
    tasks = await one.harness.list_tasks(
        one.environment, include_path=include_path, context=context
    )
    return [msgspec.structs.replace(task, name=f"{name}:{task.name}") for task in tasks]


async def ready_harnesses(
    tasks: Iterable[TaskSpec], *, version: str | None, context: Context
) -> dict[str, ReadyHarness]:
    """Every harness of the tasks, by its name. Raises as `ready_harness` does."""
    names = dict.fromkeys(task.harness for task in tasks if task.harness is not None)
    return {name: await ready_harness(name, version=version, context=context) for name in names}


async def require_tasks(
    config: EvaluationConfig, spec: EvaluationSpec, context: Context
) -> dict[str, Contents]:
    """Raise an error, before anything is started, for tasks that could not run.

    Returns what each of the harness tasks consists of, by the names in the run.

    HarnessError for a task that its harness does not have, or that needs log-probabilities from an
    engine without them; ConfigurationError for settings that a harness does not have.
    """
    contents: dict[str, Contents] = {}
    if not spec.foreign:
        return contents
    settings = config.settings
    ready = await ready_harnesses(spec.foreign, version=settings.harness_version, context=context)
    for task in spec.foreign:
        ready[task.harness or ""].harness.check(harness_settings(task, spec, settings))
    for name, tasks in _by_harness(spec.foreign).items():
        known = await _known_tasks(ready[name], settings, context)
        for task in tasks:
            _require_task(task.name, known, harness=ready[name].harness, config=config)
        own = _contents(tasks, known)
        _require_one_way(tasks, own)
        contents |= own
    return contents


def _by_harness(tasks: Iterable[TaskSpec]) -> dict[str, list[TaskSpec]]:
    by_harness: dict[str, list[TaskSpec]] = defaultdict(list)
    for task in tasks:
        by_harness[task.harness or ""].append(task)
    return by_harness


async def _known_tasks(
    one: ReadyHarness, settings: EvaluationSettings, context: Context
) -> dict[str, HarnessTask]:
    listed = await one.harness.list_tasks(
        one.environment, include_path=settings.include_path, context=context
    )
    return {task.name: task for task in listed}


def _contents(tasks: Iterable[TaskSpec], known: Mapping[str, HarnessTask]) -> dict[str, Contents]:
    """What each task of one harness consists of, by the names in the run."""
    contents = {}
    for task in tasks:
        name = harness_task_name(task.name)
        assert name is not None
        own = contents_of(name.task, known)
        contents[task.name] = Contents(
            names=frozenset(f"{name.harness}:{part}" for part in own.names),
            changed=frozenset(f"{name.harness}:{part}" for part in own.changed),
        )
    return contents


def _require_one_way(tasks: Sequence[TaskSpec], contents: Mapping[str, Contents]) -> None:
    """Raise ConfigurationError for a task that two of one harness's would ask differently.

    In a run a name stands for one result. Tasks that ask it alike share that result.
    """
    for one, other in itertools.combinations(tasks, 2):
        a, b = contents[one.name], contents[other.name]
        if not (shared := a.names & b.names):
            continue
        different = [
            field
            for field in TaskSpec.__struct_fields__
            if field not in _WITHOUT_EFFECT and getattr(one, field) != getattr(other, field)
        ]
        why = f"the settings differ: {', '.join(different)}" if different else None
        if changed := shared & (a.changed | b.changed):
            why = f"a group has its own settings for {min(changed)}"
        if why is not None:
            raise ConfigurationError(
                f"{one.name} and {other.name} both ask {min(shared)}, in different ways",
                why=why,
                fix="give both the same settings, or evaluate them in two runs"
                if different
                else "evaluate them in two runs",
            )


def _require_task(
    name: str,
    known: Mapping[str, HarnessTask],
    *,
    harness: Harness,
    config: EvaluationConfig,
) -> None:
    named = harness_task_name(name)
    assert named is not None
    if isinstance(harness, SupportsTaskFiles) and harness.find_file(
        named.task, include_path=config.settings.include_path
    ):
        return  # only running it would load the file
    if named.task not in known:
        close = nearest(named.task, known)
        fix = f"did you mean {named.harness}:{close}? " if close else ""
        fix += f"`enginehouse tasks --harness {named.harness} WORD` searches its {len(known):,}"
        if config.settings.include_path is None:
            fix += "; --include-path names a folder with tasks of your own"
        raise HarnessError(
            f"{named.harness} has no task {named.task!r}", kind="unknown_task", fix=fix
        )
    engine = config.plan.engine
    parts = sorted(contents_of(named.task, known).names & known.keys())
    choices = [part for part in parts if known[part].kind == "choose"]
    if choices and engine is not None:
        supports = load_engine(engine).capabilities(None).supports
        if Capability.PROMPT_LOGPROBS not in supports:
            raise HarnessError(
                f"{name} needs log-probabilities of prompts, which {engine} does not provide",
                kind="needs_logprobs",
                why=None if choices == [named.task] else f"{choices[0]} is a part of it",
                fix="use another engine: `enginehouse engines` shows which ones have "
                f"{Capability.PROMPT_LOGPROBS}",
            )


def harness_settings(
    task: TaskSpec, spec: EvaluationSpec, settings: EvaluationSettings
) -> HarnessSettings:
    """What the harness is told about a task.

    Of the evaluation's settings only those that are not at their defaults are passed on: a default
    leaves the choice to the harness, which knows how its task is normally run.
    """
    common = {
        name: value
        for name in ("seed", "samples", "temperature", "top_p", "top_k")
        if (value := getattr(spec, name)) != EvaluationSettings.model_fields[name].default
    }
    own = ("samples", "temperature", "top_p", "top_k")
    complete = spec.settings_of(task.name)
    return HarnessSettings(
        limit=task.limit,
        include_path=settings.include_path,
        **(common | {n: v for n in own if (v := getattr(task, n)) is not None}),
        max_tokens=complete.max_tokens,
        request_timeout=complete.request_timeout,
        max_retries=complete.max_retries,
        system=complete.system,
        few_shot=task.few_shot,
        arguments=task.arguments or {},
    )


class HarnessTasks:
    """The harness tasks of a run, asked of a target. See `evaluation.foreign.ForeignTasks`.

    Each has a folder in the run's, with the harness's files and a record of what it was answered,
    from which a second try after an interruption is answered. Tasks that have parts in common
    share a record, so that nothing is asked twice in whichever order they are run.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        spec: EvaluationSpec,
        *,
        run: Run,
        target: Target,
        context: Context,
        contents: Mapping[str, Contents] | None = None,
    ) -> None:
        """`contents` is what `require_tasks` returned; None if it was another process's."""
        self._contents = contents
        self._config = config
        self._spec = spec
        self._run = run
        self._target = target
        self._context = context
        self._ready: dict[str, ReadyHarness] = {}
        self._record_of: dict[str, str] = {}  # the task whose record it shares; see `in_order`
        self._before = ForeignTraffic()  # of gateways that are closed
        self._gateway: Gateway | None = None

    @property
    def capabilities(self) -> Capabilities:
        """What the engine supports."""
        return self._target.sampler.capabilities

    @property
    def traffic(self) -> ForeignTraffic:
        """See ForeignTasks."""
        if self._gateway is None:
            return self._before
        figures = self._gateway.figures()
        return ForeignTraffic(
            requests=self._before.requests + figures.completed,
            generated_tokens=self._before.generated_tokens + figures.generated_tokens,
        )

    async def in_order(self, tasks: Sequence[TaskSpec]) -> Sequence[TaskSpec]:
        """See ForeignTasks."""
        contents = await self._read_contents() if self._contents is None else self._contents
        for name, own in contents.items():
            sharing = (before for before in self._record_of if contents[before].names & own.names)
            self._record_of[name] = next((self._record_of[before] for before in sharing), name)
        return sorted(tasks, key=lambda task: sum(task.name in c.names for c in contents.values()))

    async def _read_contents(self) -> dict[str, Contents]:
        """What the run's tasks consist of, where several are of one harness."""
        contents: dict[str, Contents] = {}
        by_harness = _by_harness(self._spec.foreign)
        for name, tasks in by_harness.items():
            if len(tasks) > 1:
                one = await self._harness(name)
                known = await _known_tasks(one, self._config.settings, self._context)
                contents |= _contents(tasks, known)
        return contents

    async def run(
        self, task: TaskSpec, *, session: int, progress: OnForeignProgress
    ) -> Iterable[Record]:
        """See ForeignTasks; also raises ServerGoneError if the engine is gone."""
        name = harness_task_name(task.name)
        assert name is not None
        one = await self._harness(name.harness)
        folder = self._folder(task.name)
        options = GatewayOptions(
            api_key=secrets.token_urlsafe(24),
            settings=GatewaySettings(
                record=self._folder(self._record_of.get(task.name, task.name)) / "answers",
                replay=True,
                resume=True,
            ),
        )
        began = time.monotonic()
        harness = f"{name.harness} {one.environment.version}"
        self._context.notify(f"{task.name}: {harness} runs it in {folder}")
        async with self._open_gateway(options) as gateway:
            results = await _while_it_answers(
                gateway,
                one.harness.run(
                    [name.task],
                    endpoint=await self._endpoint(gateway, task),
                    settings=harness_settings(task, self._spec, self._config.settings),
                    environment=one.environment,
                    folder=folder,
                    context=self._context,
                    progress=_summed(progress),
                ),
            )
            figures = gateway.figures()
        return records_of(
            results,
            asked=task,
            session=session,
            traffic=Traffic(
                requests=figures.completed,
                replayed=figures.replayed,
                seconds=time.monotonic() - began,
                prompt_tokens=figures.prompt_tokens,
                generated_tokens=figures.generated_tokens,
            ),
        )

    @asynccontextmanager
    async def _open_gateway(self, options: GatewayOptions) -> AsyncIterator[Gateway]:
        """A gateway whose traffic is counted."""
        async with open_gateway(self._target.deployment, options, self._context) as gateway:
            self._gateway = gateway
            try:
                yield gateway
            finally:
                self._before = self.traffic
                self._gateway = None

    def _folder(self, task: str) -> Path:
        return self._run.folder / "harnesses" / folder_name(task)

    async def _harness(self, name: str) -> ReadyHarness:
        if name not in self._ready:
            version = self._config.settings.harness_version
            self._ready[name] = await ready_harness(name, version=version, context=self._context)
        return self._ready[name]

    async def _endpoint(self, gateway: Gateway, task: TaskSpec) -> HarnessEndpoint:
        target = self._target
        checkpoint = await served_checkpoint(target, self._config.plan.server)
        return HarnessEndpoint(
            url=gateway.url,
            api_key=gateway.api_key or "",
            model=target.sampler.model,
            tokenizer=checkpoint.folder,
            chat=self._is_chat(),
            capabilities=self.capabilities,
            concurrency=task.concurrency or self._spec.concurrency or IN_FLIGHT,
            max_model_len=checkpoint.max_model_len,
        )

    def _is_chat(self) -> bool:
        """Whether there is a chat template; of a server that is not ours, it has to be assumed."""
        if Capability.CHAT not in self.capabilities.supports:
            return False
        ours = self._target.deployment.model is not None
        return not ours or self._target.provenance.chat_template_digest is not None


def folder_name(task: str) -> str:
    """The name of a task's folder: readable, and different for different tasks."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", task)[-60:].strip("-.")
    return f"{readable}-{hashlib.sha256(task.encode()).hexdigest()[:8]}"


async def _while_it_answers(gateway: Gateway, work: Awaitable[Result]) -> Result:
    """The result of `work`, or the error for which the gateway cannot answer any more."""
    working = asyncio.ensure_future(work)
    ending = asyncio.ensure_future(gateway.ended())
    try:
        await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            ending.result()
        return await working
    finally:
        for future in (working, ending):
            future.cancel()
        await asyncio.gather(working, ending, return_exceptions=True)


def _summed(progress: OnForeignProgress) -> OnHarnessProgress:
    """Reports of single tasks, added up over the parts of a group."""
    parts: dict[str, HarnessProgress] = {}

    def report(state: HarnessProgress) -> None:
        parts[state.task] = state
        totals = [part.total for part in parts.values()]
        known = [total for total in totals if total is not None]
        progress(
            sum(part.done for part in parts.values()),
            sum(known) if len(known) == len(totals) else None,
        )

    return report

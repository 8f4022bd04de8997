"""From a launch configuration to the values of an evaluation: what the job's plan.yaml says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.core.reasoning import ReasoningUse
from enginehouse.engines.registry import hosted_engine
from enginehouse.harnesses.base import HarnessSettings
from enginehouse.harnesses.names import harness_task_name
from enginehouse.harnesses.registry import load_harness
from enginehouse.jobs.companions import Arrangement, arrange_judge
from enginehouse.jobs.configuration import (
    AdapterConfig,
    DeploymentSettings,
    EvaluatorConfig,
    JudgeSettings,
    LaunchConfig,
    LaunchTask,
    ServerEndpoints,
)
from enginehouse.jobs.task_names import ResolvedTask, resolve_task
from enginehouse.jobs.variables import Variables
from enginehouse.tasks.base import is_judged
from enginehouse.tasks.registry import load_task

_AUXILIARY: Final = "auxiliary_deployments."
_FILES: Final = {
    "gpqa_diamond": "gpqa_diamond.csv",
    "gsm8k": "test.jsonl",
    "hellaswag": "hellaswag_val.jsonl",
    "ifeval": "input_data.jsonl",
}
"""The file of a task's data in a folder that holds the original."""
_ENDPOINTS: Final = {
    "chat": ("generate", "call"),
    "vlm": ("generate", "call"),
    "completions": ("choose",),
    "completions_logprob": ("choose",),
}
"""The launcher's endpoint types, and the kinds of tasks that ask there."""


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """The values of an EvaluationConfig, the tasks that their names stand for, and what to note.

    `variables` are all that the job needs. `judge_gpus` are those that a judge's server needs
    besides the model's, on the same node. If it gets nodes of its own, it is in `companions`, and
    needs `judge_gpus_per_node` on each.
    """

    values: dict[str, Any]
    tasks: tuple[ResolvedTask, ...]
    notes: tuple[str, ...]
    variables: Variables
    judge_gpus: int
    companions: Arrangement
    judge_gpus_per_node: int


def plan_evaluation(config: LaunchConfig, *, folder: PurePosixPath) -> EvaluationPlan:
    """What the job in `folder` evaluates, and how. Loads no data, and starts nothing.

    Tasks that no harness here has are among the tasks; `task_names.require_runnable` refuses them.
    Raises ConfigurationError for a task that is wrong, or named twice, and for parameters that its
    harness does not have.
    """
    base = Path(config.origin).parent
    tasks = tuple(resolve_task(task.name, base=base) for task in config.evaluation.tasks)
    _require_different(tasks)
    notes: list[str] = []
    settings = [
        _task_settings(config, task, resolved, notes)
        for task, resolved in zip(config.evaluation.tasks, tasks, strict=True)
    ]
    values = _with_common_apart(settings) | _own_tasks(config, tasks) | _answering(config)
    variables = config.variables
    gpus, gpus_per_node, companions = 0, 0, Arrangement()
    judge = _judge_of(config, tasks, notes)
    notes += _unused_deployments(config, judge)
    if judge is not None:
        values["judge"] = _judge_values(config, judge)
        if judge.auxiliary is not None and config.execution.gives_nodes:
            auxiliary = config.auxiliary_variables[judge.auxiliary]
            variables = auxiliary.with_others(variables)
            gpus_per_node = _gpus(config.auxiliary_deployments[judge.auxiliary])
            companions = arrange_judge(config, judge.auxiliary, values["judge"], folder=folder)
            sampling = _judge_sampling(judge.settings)
            values["judge"] = {**sampling, **companions.plan}
        elif judge.auxiliary is not None:
            variables = config.auxiliary_passed_on(judge.auxiliary).with_others(variables)
            gpus = _gpus(config.auxiliary_deployments[judge.auxiliary])
    return EvaluationPlan(
        values=values,
        tasks=tasks,
        notes=tuple(dict.fromkeys(notes)),
        variables=variables,
        judge_gpus=gpus,
        companions=companions,
        judge_gpus_per_node=gpus_per_node,
    )


def _task_settings(
    config: LaunchConfig, task: LaunchTask, resolved: ResolvedTask, notes: list[str]
) -> dict[str, Any]:
    """A task's entry, complete: what is said for all tasks is said here."""
    settings = config.evaluation.settings_of(task)
    parameters, adapter = settings.params, settings.adapter
    _require_endpoint(task, resolved)
    if not resolved.native:
        return _harness_settings(config, task, resolved, settings, notes)
    notes += [
        f"{task.name}: params.extra.{name} has no effect on a native task"
        for name in ("num_fewshot", "arguments", "include_path", "tokenizer")
        if getattr(parameters.extra, name)
    ]
    values = {
        "name": resolved.name,
        "data": _data(task, resolved),
        "limit": parameters.limit_samples,
        "samples": parameters.extra.n_samples,
        "max_tokens": parameters.max_new_tokens,
        "temperature": parameters.temperature,
        "top_p": parameters.top_p,
        "system": _system(adapter, notes),
        "reasoning": _reasoning(adapter, notes),
        "reasoning_end": adapter.end_reasoning_token,
        "concurrency": parameters.parallelism,
        "request_timeout": parameters.request_timeout,
        "max_retries": parameters.max_retries,
    }
    return {name: value for name, value in values.items() if value is not None}


def _harness_settings(
    config: LaunchConfig,
    task: LaunchTask,
    resolved: ResolvedTask,
    settings: EvaluatorConfig,
    notes: list[str],
) -> dict[str, Any]:
    """The entry of a harness's task. Raises ConfigurationError for what the harness lacks."""
    parameters, adapter = settings.params, settings.adapter
    if task.dataset_dir is not None:
        raise ConfigurationError(
            f"dataset_dir of task {task.name}: {task.dataset_dir}",
            why=f"{resolved.harness or 'its harness'} loads the data of its tasks itself",
            fix="remove dataset_dir; set HF_HOME in env_vars to change the hub's cache",
        )
    if any(
        given is not None
        for given in (
            adapter.process_reasoning_traces,
            adapter.use_reasoning,
            adapter.end_reasoning_token,
            adapter.include_if_reasoning_not_finished,
        )
    ):
        notes.append(
            f"{task.name}: reasoning is left in the answers that {resolved.harness} scores, "
            "unless the server removes it: deployment.extra_args with --reasoning-parser"
        )
    if task.endpoint_type is not None:
        notes.append(
            f"{task.name}: endpoint_type has no effect; {resolved.harness or 'its harness'} "
            "chooses how a task is asked"
        )
    arguments = dict(parameters.extra.arguments)
    if (tokenizer := parameters.extra.tokenizer) is not None:
        if (reason := _why_not_tokenized(config, resolved)) is None:
            arguments.setdefault("tokenizer", tokenizer)
        else:
            notes.append(f"{task.name}: params.extra.tokenizer has no effect; {reason}")
    own: dict[str, Any] = {
        "samples": parameters.extra.n_samples,
        "max_tokens": parameters.max_new_tokens,
        "temperature": parameters.temperature,
        "top_p": parameters.top_p,
        "system": _system(adapter, notes),
        "few_shot": parameters.extra.num_fewshot,
        "arguments": arguments or None,
        "request_timeout": parameters.request_timeout,
        "max_retries": parameters.max_retries,
    }
    given = {name: value for name, value in own.items() if value is not None}
    if resolved.harness is not None:
        load_harness(resolved.harness).check(HarnessSettings(**given))
    values = {
        "name": resolved.name,
        "limit": parameters.limit_samples,
        "concurrency": parameters.parallelism,
        **given,
    }
    return {name: value for name, value in values.items() if value is not None}


def _own_tasks(config: LaunchConfig, tasks: Sequence[ResolvedTask]) -> dict[str, str]:
    """The folder with the user's own tasks, of which a run has one."""
    base = Path(config.origin).parent
    folders = {
        str((base / Path(path).expanduser()).absolute())
        for task, resolved in zip(config.evaluation.tasks, tasks, strict=True)
        if (path := config.evaluation.settings_of(task).params.extra.include_path) is not None
        and not resolved.native
    }
    if len(folders) > 1:
        raise ConfigurationError(
            f"params.extra.include_path names several folders: {', '.join(sorted(folders))}",
            why="one run has one folder with tasks of your own",
            fix="put the tasks into one folder, or launch them as jobs of their own",
        )
    return {"include_path": folders.pop()} if folders else {}


def _why_not_tokenized(config: LaunchConfig, resolved: ResolvedTask) -> str | None:
    """Why a task does not need the file's tokenizer; None if it does."""
    if resolved.harness != "lm-eval":
        return f"{resolved.harness or 'its harness'} sends text prompts"
    is_elsewhere = not config.deployment.deployed or config.execution.server_address is not None
    if is_elsewhere or config.deployment.command is not None:
        return None
    return "the deployed model has its own"


def _system(adapter: AdapterConfig, notes: list[str]) -> str | None:
    if adapter.custom_system_prompt is None and adapter.use_system_prompt:
        notes.append("use_system_prompt has no effect, because there is no custom_system_prompt")
    if adapter.custom_system_prompt is None or adapter.use_system_prompt:
        return adapter.custom_system_prompt
    notes.append("custom_system_prompt is not used, because use_system_prompt is not true")
    return None


def _reasoning(adapter: AdapterConfig, notes: list[str]) -> str | None:
    """What happens to reasoning; None leaves the evaluation's default, which takes it out."""
    said = [s for s in (adapter.process_reasoning_traces, adapter.use_reasoning) if s is not None]
    if said and not any(said):
        notes.append(
            "reasoning is scored as part of the answer, because "
            "process_reasoning_traces (or use_reasoning) is false"
        )
        if adapter.include_if_reasoning_not_finished is not None:
            notes.append(
                "include_if_reasoning_not_finished has no effect, because reasoning is scored"
            )
        return ReasoningUse.KEEP.value
    if adapter.include_if_reasoning_not_finished:
        return ReasoningUse.STRIP_FINISHED.value
    return ReasoningUse.STRIP.value if said else None


def _data(task: LaunchTask, resolved: ResolvedTask) -> str | None:
    """The file of the task's data, on the machine where the job runs."""
    if task.dataset_dir is None:
        return None
    if PurePosixPath(task.dataset_dir).suffix:
        return task.dataset_dir
    if (file := _FILES.get(resolved.name)) is None:
        raise ConfigurationError(
            f"dataset_dir of task {task.name} is a folder: {task.dataset_dir}",
            why=f"which file in it holds the data of {resolved.name} is not known",
            fix="name the file",
        )
    return str(PurePosixPath(task.dataset_dir) / file)


def _require_endpoint(task: LaunchTask, resolved: ResolvedTask) -> None:
    """Raise ConfigurationError for an endpoint at which the task cannot be asked."""
    if task.endpoint_type is None or not resolved.native:
        return
    kind = load_task(resolved.name).info.kind
    if kind not in _ENDPOINTS.get(task.endpoint_type, ()):
        fitting = [name for name, kinds in _ENDPOINTS.items() if kind in kinds]
        raise ConfigurationError(
            f"task {task.name} cannot be asked as {task.endpoint_type!r}",
            why=f"our own {resolved.name} is asked as {fitting[0]}",
            fix="remove endpoint_type",
        )


def _require_different(tasks: Sequence[ResolvedTask]) -> None:
    written: defaultdict[str, list[str]] = defaultdict(list)
    for task in tasks:
        written[task.name].append(task.written)
    for name, names in written.items():
        if len(names) > 1:
            raise ConfigurationError(
                f"the task {name} is named twice: {', '.join(names)}",
                why="a run can have each task only once",
                fix="remove one of them, or launch them as separate jobs",
            )


def _with_common_apart(tasks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all tasks have alike is said once.

    A harness's task is given the evaluation's settings only where they are not at their defaults,
    so that what was said here for it stays with it.
    """
    if any(harness_task_name(task["name"]) is not None for task in tasks):
        return {"tasks": list(tasks)}
    first, *others = tasks
    common = {
        name: value
        for name, value in first.items()
        if name not in ("name", "data") and all(task.get(name) == value for task in others)
    }
    own = [{name: v for name, v in task.items() if name not in common} for task in tasks]
    return {"tasks": own, **common}


@dataclass(frozen=True, kw_only=True)
class _NamedJudge:
    """The judge that tasks name; `auxiliary` is a deployment of the job's, None for a server."""

    settings: JudgeSettings
    auxiliary: str | None


def _judge_of(
    config: LaunchConfig, tasks: Sequence[ResolvedTask], notes: list[str]
) -> _NamedJudge | None:
    """The judge of the tasks that have one; None if none has."""
    named = {
        task.name: settings
        for task in config.evaluation.tasks
        if (settings := config.evaluation.settings_of(task).params.extra.judge) is not None
    }
    judged = [task for task in tasks if task.native and is_judged(load_task(task.name))]
    if not judged:
        if named:
            notes.append("the judge is not used: no native task here needs one")
        return None
    notes += [
        f"{task.name}: the judge is not used, because the task does not need one"
        for task, resolved in zip(config.evaluation.tasks, tasks, strict=True)
        if task.nemo_evaluator_config.params.extra.judge is not None and resolved not in judged
    ]
    if without := [task.written for task in judged if task.written not in named]:
        raise ConfigurationError(
            f"these tasks need a judge, but none is named: {', '.join(without)}",
            fix="give params.extra.judge its url and model_id; for an auxiliary deployment, they "
            "are auxiliary_deployments.NAME.chat_url and auxiliary_deployments.NAME.model_id",
        )
    first, *others = [named[task.written] for task in judged]
    if any(other != first for other in others):
        raise ConfigurationError(
            f"the tasks name different judges: {', '.join(task.written for task in judged)}",
            why="a job can have only one judge",
            fix="launch them as separate jobs",
        )
    if first.url is None:
        raise ConfigurationError(
            "params.extra.judge has no url",
            fix="give its address, or auxiliary_deployments.NAME.chat_url",
        )
    if not first.url.startswith(_AUXILIARY):
        return _NamedJudge(settings=first, auxiliary=None)
    name = first.url.removeprefix(_AUXILIARY).partition(".")[0]
    if name not in config.auxiliary_deployments:
        raise UnknownNameError("auxiliary deployment", name, config.auxiliary_deployments)
    deployment = config.auxiliary_deployments[name]
    own = (f"{_AUXILIARY}{name}.model_id", deployment.served_model_name, deployment.model)
    if first.model_id is not None and first.model_id not in own:
        notes.append(
            f"judge.model_id ({first.model_id}) has no effect: the judge uses the name of "
            f"auxiliary_deployments.{name}"
        )
    return _NamedJudge(settings=first, auxiliary=name)


def _unused_deployments(config: LaunchConfig, judge: _NamedJudge | None) -> Iterator[str]:
    """What to note of auxiliary deployments that are not started, or not as the file says."""
    asked = judge.auxiliary if judge is not None else None
    for name, deployment in config.auxiliary_deployments.items():
        place = f"auxiliary_deployments.{name}"
        if name != asked:
            yield f"{place} is not started: no task here needs it"
        elif (
            not config.execution.gives_nodes and deployment.num_nodes * deployment.num_instances > 1
        ):
            yield (
                f"{place}: num_nodes and num_instances have no effect; it is one server, on the "
                "nodes of the model under test"
            )


def _judge_sampling(settings: JudgeSettings) -> dict[str, Any]:
    values = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_tokens": settings.max_tokens,
        "concurrency": settings.parallelism,
        "request_timeout": settings.request_timeout,
        "max_retries": settings.max_retries,
    }
    return {name: value for name, value in values.items() if value is not None}


def _judge_values(config: LaunchConfig, judge: _NamedJudge) -> dict[str, Any]:
    settings = judge.settings
    sampling = _judge_sampling(settings)
    if judge.auxiliary is None:
        assert settings.url is not None
        return sampling | {
            "url": settings.url,
            "model": settings.model_id,
            "api_key_env": settings.api_key,
            "engine": hosted_engine(settings.url),
        }
    deployment = config.auxiliary_deployments[judge.auxiliary]
    variables = dict(config.auxiliary_values(judge.auxiliary))
    first = _gpus(config.deployment) * config.execution.instances
    if first and not config.execution.gives_nodes and (own := _gpus(deployment)):
        ours = ",".join(str(number) for number in range(first, first + own))
        variables.setdefault("CUDA_VISIBLE_DEVICES", ours)
    return sampling | _server_plan(
        deployment,
        env_vars=variables,
        env_names=tuple(sorted(config.auxiliary_passed_on(judge.auxiliary).by_name)),
    )


def _answering(config: LaunchConfig) -> dict[str, Any]:
    """Who answers: a server of the job's own, or one that runs already."""
    deployment = config.deployment
    endpoint = config.target.api_endpoint
    if not deployment.deployed:
        return {
            "url": endpoint.url,
            "model": endpoint.model_id,
            "adapter": deployment.adapter,
            "api_key_env": endpoint.api_key_name,
            "engine": hosted_engine(endpoint.url or ""),
        }
    if (address := config.execution.server_address) is not None:
        return {
            "url": address,
            "model": deployment.served_model_name or deployment.model,
            "api_key_env": config.execution.server_key,
        }
    server = {"env_vars": config.server_values, "env_names": config.server_names}
    return _server_plan(deployment, **server)


def _gpus(deployment: DeploymentSettings) -> int:
    """The GPUs of one server of the job's own."""
    is_on_gpus = deployment.deployed and deployment.variant != "cpu"
    return deployment.gpus if is_on_gpus else 0


def _server_plan(deployment: DeploymentSettings, **server: Any) -> dict[str, Any]:
    """The plan of a server of the job's own; `server` holds more of its options."""
    if deployment.command is not None:
        return _command_plan(deployment, **server)
    return {
        "model": deployment.model,
        "path": deployment.fallback,
        "engine": deployment.type,
        "python": deployment.python,
        "version": deployment.version,
        "variant": deployment.variant,
        "adapter": deployment.adapter,
        "server": {
            "served_model_name": deployment.served_model_name,
            "port": deployment.port,
            "tensor_parallel_size": deployment.tensor_parallel_size,
            "pipeline_parallel_size": deployment.pipeline_parallel_size,
            "data_parallel_size": deployment.data_parallel_size,
            "gpu_memory_utilization": deployment.gpu_memory_utilization,
            "extra_args": deployment.extra_args,
            **server,
        },
    }


def _command_plan(deployment: DeploymentSettings, **server: Any) -> dict[str, Any]:
    """The same for a server whose command is the user's."""
    endpoints = deployment.endpoints or ServerEndpoints()
    return {
        "model": deployment.served_model_name or deployment.model,
        "engine": deployment.type,
        "server": {
            "command": deployment.command,
            "health_path": endpoints.health,
            "only_endpoint": endpoints.only,
            "served_model_name": deployment.served_model_name,
            "port": deployment.port,
            "extra_args": deployment.extra_args,
            **server,
        },
    }

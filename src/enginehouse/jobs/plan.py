"""From a launch configuration to what will run: an evaluation, and the job that it is."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from enginehouse.commands.configuration import EvaluationConfig
from enginehouse.deployment.configuration import parse
from enginehouse.jobs.base import JobSpec
from enginehouse.jobs.configuration import LaunchConfig
from enginehouse.jobs.task_names import ResolvedTask, resolve_task
from enginehouse.jobs.variables import Variables

PLAN, RUN = "plan.yaml", "run"


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """A job that can be submitted, and the configuration that it was made from.

    `tasks` says what each name of a task stands for. `gpus` is the number of GPUs that its servers
    need. `variables` say where the values of its secrets are.
    """

    config: LaunchConfig
    evaluation: EvaluationConfig
    tasks: tuple[ResolvedTask, ...]
    job: JobSpec
    created: datetime
    gpus: int
    variables: Variables


def plan_launch(config: LaunchConfig) -> LaunchPlan:
    """What will run, tasks of other harnesses included. Nothing is written or started.

    Raises ConfigurationError for tasks that do not exist, and for GPUs that do not multiply out.
    """
    base = Path(config.origin).parent
    tasks = tuple(resolve_task(task.name, base=base) for task in config.evaluation.tasks)
    values = {**_evaluation_values(config), "tasks": [{"name": task.name} for task in tasks]}
    evaluation = parse(EvaluationConfig, values, origin=config.origin)
    created = datetime.now(UTC)
    job_id = secrets.token_hex(8)
    gpus = config.deployment.gpus if config.deployment.deployed else 0
    job = JobSpec(
        id=job_id,
        name=config.name,
        folder=config.execution.jobs_folder / f"{created:%Y%m%d_%H%M%S}-{job_id}",
        command=(*config.execution.command_words, "eval", "--config", PLAN, "--folder", RUN),
        files={PLAN: _plan_text(evaluation)},
        environment=config.variables.environment(),
        resources=config.execution.resources(gpus=gpus),
        before="\n".join(
            filter(None, (config.deployment.pre_cmd.strip(), config.evaluation.pre_cmd.strip()))
        ),
    )
    return LaunchPlan(
        config=config,
        evaluation=evaluation,
        tasks=tasks,
        job=job,
        created=created,
        gpus=gpus,
        variables=config.variables,
    )


def _plan_text(evaluation: EvaluationConfig) -> str:
    """The evaluation as the file that the job reads. No secret is in it: see Variables."""
    values = evaluation.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _evaluation_values(config: LaunchConfig) -> dict[str, Any]:
    deployment = config.deployment
    endpoint = config.target.api_endpoint
    values: dict[str, Any] = {
        "limit": config.evaluation.nemo_evaluator_config.params.limit_samples,
        "concurrency": config.evaluation.nemo_evaluator_config.params.parallelism,
    }
    if not deployment.deployed:
        return {
            **values,
            "url": endpoint.url,
            "model": endpoint.model_id,
            "api_key_env": endpoint.api_key_name,
        }
    return {
        **values,
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
            "env_vars": config.server_values,
            "env_names": config.server_names,
        },
    }

"""From a launch configuration to what will run: an evaluation, and the job that it is."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from enginehouse.commands.configuration import EvaluationConfig
from enginehouse.commands.evaluate import resolved_yaml
from enginehouse.deployment.configuration import parse
from enginehouse.jobs.base import Environment, JobSpec
from enginehouse.jobs.configuration import LaunchConfig
from enginehouse.jobs.variables import Variables

PLAN, RUN = "plan.yaml", "run"


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """A job that can be submitted, and the configuration that it was made from.

    `gpus` is the number of GPUs that its servers need. `variables` say where the values of its
    secrets are.
    """

    config: LaunchConfig
    evaluation: EvaluationConfig
    job: JobSpec
    created: datetime
    gpus: int
    variables: Variables


def plan_launch(config: LaunchConfig) -> LaunchPlan:
    """What will run. Reads tasks and settings, and starts nothing.

    Raises ConfigurationError for tasks that do not run here, and for GPUs that do not add up.
    """
    evaluation = parse(EvaluationConfig, _evaluation_values(config), origin=config.origin)
    created = datetime.now(UTC)
    job_id = secrets.token_hex(8)
    gpus = config.deployment.gpus if config.deployment.deployed else 0
    variables = Variables(
        by_name={**config.server_variables.by_name, **config.job_variables.by_name}
    )
    environment = variables.environment()
    job = JobSpec(
        id=job_id,
        name=config.name,
        folder=config.execution.jobs_folder / f"{created:%Y%m%d_%H%M%S}-{job_id}",
        command=(*config.execution.command_words, "eval", "--config", PLAN, "--folder", RUN),
        files={PLAN: resolved_yaml(evaluation)},
        environment=Environment(
            values=environment.values,
            secrets=environment.secrets,
            from_machine=environment.from_machine,
        ),
        resources=config.execution.resources(gpus=gpus),
        before="\n".join(
            filter(None, (config.deployment.pre_cmd.strip(), config.evaluation.pre_cmd.strip()))
        ),
    )
    return LaunchPlan(
        config=config,
        evaluation=evaluation,
        job=job,
        created=created,
        gpus=gpus,
        variables=variables,
    )


def _evaluation_values(config: LaunchConfig) -> dict[str, Any]:
    deployment = config.deployment
    endpoint = config.target.api_endpoint
    values: dict[str, Any] = {
        "tasks": [{"name": task.name} for task in config.evaluation.tasks],
        "limit": config.evaluation.nemo_evaluator_config.params.limit_samples,
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
            "env_vars": config.server_variables.environment().values,
        },
    }

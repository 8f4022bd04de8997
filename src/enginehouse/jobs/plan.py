"""From a launch configuration to what will run: an evaluation, and the job that it is."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import yaml

from enginehouse.commands.configuration import EvaluationConfig
from enginehouse.core.errors import ConfigurationError
from enginehouse.deployment.configuration import parse
from enginehouse.jobs.base import JobSpec
from enginehouse.jobs.companions import arrange_nodes
from enginehouse.jobs.configuration import LaunchConfig
from enginehouse.jobs.evaluation_plan import plan_evaluation
from enginehouse.jobs.task_names import ResolvedTask
from enginehouse.jobs.variables import Variables

PLAN, RUN, EXPORT = "plan.yaml", "run", "export.yaml"


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """A job that can be submitted, and the configuration that it was made from.

    `tasks` are what the names of the file's tasks stand for, and `notes` are warnings. `gpus` is
    the number of GPUs that its servers need. `variables` say where the values of its secrets are.
    """

    config: LaunchConfig
    evaluation: EvaluationConfig
    tasks: tuple[ResolvedTask, ...]
    notes: tuple[str, ...]
    job: JobSpec
    created: datetime
    gpus: int
    variables: Variables


def plan_launch(config: LaunchConfig) -> LaunchPlan:
    """What will run. Nothing is written or started.

    Raises ConfigurationError for tasks that are wrong, and for GPUs that do not add up. Tasks that
    no harness here has are refused when the plan is launched.
    """
    created = datetime.now(UTC)
    job_id = secrets.token_hex(8)
    folder = config.execution.jobs_folder / f"{created:%Y%m%d_%H%M%S}-{job_id}"
    planned = plan_evaluation(config, folder=folder)
    arranged = arrange_nodes(config, planned.values, job=job_id, folder=folder)
    values = {**planned.values, **arranged.plan}
    evaluation = parse(EvaluationConfig, values, origin=config.origin)
    if config.execution.runs_here:
        evaluation = evaluation.with_absolute_paths()
    gpus = planned.judge_gpus
    if config.deployment.deployed and config.deployment.variant != "cpu":
        gpus += config.deployment.gpus * config.execution.instances
    resources = config.execution.resources(gpus=gpus)
    if arranged.companions:
        resources = replace(resources, nodes=1)  # the others are the companions'
    if planned.judge_gpus_per_node > resources.gpus_per_node > 0:
        raise ConfigurationError(
            f"the judge needs {planned.judge_gpus_per_node} GPUs on each of its nodes, but a "
            f"node of the job has {resources.gpus_per_node}",
            fix="divide the judge into smaller parts, or ask for more GPUs on each node",
        )
    judges = planned.companions.companions
    job = JobSpec(
        id=job_id,
        name=config.name,
        folder=folder,
        command=(
            *config.execution.command_words,
            *("eval", "--config", PLAN, "--folder", RUN),
            *(("--export", EXPORT) if config.export else ()),
        ),
        files={
            PLAN: _plan_text(evaluation),
            **arranged.files,
            **planned.companions.files,
            **({EXPORT: _export_text(config)} if config.export else {}),
        },
        environment=planned.variables.environment(),
        resources=resources,
        companions=(*arranged.companions, *judges),
        before="\n".join(
            filter(None, (config.deployment.pre_cmd.strip(), config.evaluation.pre_cmd.strip()))
        ),
    )
    return LaunchPlan(
        config=config,
        evaluation=evaluation,
        tasks=planned.tasks,
        notes=(*config.notes, *planned.notes, *arranged.notes),
        job=job,
        created=created,
        gpus=gpus + planned.judge_gpus_per_node * sum(judge.nodes for judge in judges),
        variables=planned.variables,
    )


def _plan_text(evaluation: EvaluationConfig) -> str:
    """The evaluation as the file that the job reads. No secret is in it: see Variables."""
    values = evaluation.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _export_text(config: LaunchConfig) -> str:
    """The exporters as the file that the job reads at its end."""
    return yaml.safe_dump({"export": dict(config.export)}, sort_keys=False, allow_unicode=True)

"""What a launch would do, with nothing written and no machine asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import psutil
import yaml

from enginehouse.core.errors import EnginehouseError
from enginehouse.jobs.base import Artifact
from enginehouse.jobs.executors.base import Executor, SupportsCheck
from enginehouse.jobs.launch import open_executor
from enginehouse.jobs.plan import LaunchPlan
from enginehouse.jobs.task_names import ResolvedTask, require_runnable
from enginehouse.processes.gpus import read_gpus
from enginehouse.provisioning.model_memory import checkpoint_memory, estimate_memory
from enginehouse.runtime.context import Context


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate of what one GPU must hold, in bytes; without GPUs, the machine's memory.

    `weights` are its share of the weights, `cache_per_token` that of one token's KV cache, and
    `available` what the engine may take of it. None is unknown; the memory of GPUs is known for
    the executor `local` alone. What else the engine needs (activations, CUDA graphs, the runtime)
    is not in it, so there must be some room.
    """

    weights: int
    cache_per_token: int | None
    available: int | None
    executor: str
    source: str

    @property
    def tokens(self) -> int | None:
        """How many tokens fit beside the weights; negative or 0: the model does not fit."""
        if self.available is None or not self.cache_per_token:
            return None
        return (self.available - self.weights) // self.cache_per_token


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """A launch that did not happen. No value of a secret is in it.

    `configuration` is the resolved launch file. `gpus_needed` is for all servers of the job, and
    `gpus_asked_for` on all its nodes. `tasks` says what each name of a task stands for. `refusals`
    are why the launch would be refused, as far as that is known here. `fit` is an estimate;
    None if the model's size is unknown.
    """

    configuration: str
    tasks: tuple[ResolvedTask, ...]
    artifacts: tuple[Artifact, ...]
    notes: tuple[str, ...]
    not_acted_on: Mapping[str, str]
    gpus_needed: int
    gpus_asked_for: int
    refusals: tuple[str, ...]
    fit: Fit | None


def dry_run(plan: LaunchPlan, context: Context) -> DryRun:
    """Everything that launching the plan would write, send and run."""
    resources = plan.job.resources
    executor = open_executor(plan.config.execution, context)
    return DryRun(
        configuration=yaml.safe_dump(dict(plan.config.values), sort_keys=False, allow_unicode=True),
        tasks=plan.tasks,
        artifacts=tuple(executor.render(plan.job)),
        notes=plan.notes,
        not_acted_on=plan.config.not_acted_on,
        gpus_needed=plan.gpus,
        gpus_asked_for=plan.job.nodes * resources.gpus_per_node,
        refusals=_refusals(executor, plan),
        fit=_fit(plan),
    )


def _refusals(executor: Executor, plan: LaunchPlan) -> tuple[str, ...]:
    """What `launch` would say. All of it: it is read to prepare the launch."""
    checks: list[Callable[[], Any]] = [
        lambda: require_runnable(plan.tasks),
        lambda: plan.variables.secret_values(os.environ),
    ]
    if isinstance(executor, SupportsCheck):
        checks.append(lambda: executor.check(plan.job))
    refusals = []
    for check in checks:
        try:
            check()
        except EnginehouseError as error:
            refusals.append(str(error))
    return tuple(refusals)


def _fit(plan: LaunchPlan) -> Fit | None:
    """What the tensor and pipeline parallel parts of one instance hold."""
    deployment = plan.config.deployment
    memory = None
    if deployment.hf_model_handle:
        memory = estimate_memory(deployment.hf_model_handle)
    if memory is None and deployment.checkpoint_path:
        memory = checkpoint_memory(deployment.checkpoint_path)
    if memory is None:
        return None
    parts = deployment.tensor_parallel_size * deployment.pipeline_parallel_size
    token = memory.cache_per_token
    return Fit(
        weights=memory.weights // parts,
        cache_per_token=None if token is None else -(-token // parts),
        available=_available(plan),
        executor=plan.config.execution.type,
        source=memory.source,
    )


def _available(plan: LaunchPlan) -> int | None:
    """What an engine may take of a GPU of this machine; None for jobs on other machines."""
    if plan.config.execution.type != "local":
        return None
    totals = [gpu.total_bytes for gpu in read_gpus() if gpu.total_bytes is not None]
    if totals:
        return int(min(totals) * (plan.config.deployment.gpu_memory_utilization or 0.9))
    return psutil.virtual_memory().total

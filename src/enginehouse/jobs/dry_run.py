"""What a launch would do, with nothing written and no machine asked."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import yaml

from enginehouse.jobs.base import Artifact
from enginehouse.jobs.launch import open_executor
from enginehouse.jobs.plan import LaunchPlan
from enginehouse.runtime.context import Context


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """A launch that did not happen. No value of a secret is in it.

    `configuration` is the resolved launch file. `gpus_needed` is for all servers of the job, and
    `gpus_asked_for` on all its nodes.
    """

    configuration: str
    artifacts: tuple[Artifact, ...]
    notes: tuple[str, ...]
    not_acted_on: Mapping[str, str]
    gpus_needed: int
    gpus_asked_for: int


def dry_run(plan: LaunchPlan, context: Context) -> DryRun:
    """Everything that launching the plan would write, send and run."""
    resources = plan.job.resources
    return DryRun(
        configuration=yaml.safe_dump(dict(plan.config.values), sort_keys=False, allow_unicode=True),
        artifacts=tuple(open_executor(plan.config.execution, context).render(plan.job)),
        notes=plan.config.notes,
        not_acted_on=plan.config.not_acted_on,
        gpus_needed=plan.gpus,
        gpus_asked_for=resources.nodes * resources.gpus_per_node,
    )

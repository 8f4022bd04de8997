"""What sbatch prints when it refuses a job, also where the tests' cluster cannot make it do so."""

from __future__ import annotations

import pytest

from enginehouse.jobs.executors.slurm.login_node import Finished, LoginNode
from enginehouse.jobs.executors.slurm.refusals import refusal
from enginehouse.jobs.executors.slurm.settings import SlurmSettings


class ScriptedLoginNode(LoginNode):
    """A login node whose every script prints the same."""

    def __init__(self, out: str) -> None:
        super().__init__("login", username=None, options={})
        self.out = out

    async def run(self, script: str, *, patience: float = 1.0) -> Finished:
        """Run nothing."""
        return Finished(0, self.out.encode(), "")


async def refused(said: str, *, known: str = "", **settings: object):
    """The error for what sbatch said, where Slurm knows `known`."""
    section = SlurmSettings.model_validate({"output_dir": "/jobs", **settings})
    return await refusal(Finished(84, b"", said), section, ScriptedLoginNode(known))


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Invalid account or account/partition combination specified", "unknown_account"),
        ("Invalid partition name specified", "unknown_partition"),
        ("Invalid qos specification", "unknown_qos"),
        ("Invalid generic resource (gres) specification", "unknown_gres"),
        ("Invalid Trackable RESource (TRES) specification", "unknown_gres"),
        ("Invalid feature specification", "unknown_feature"),
        (
            "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
            "over_limit",
        ),
        ("Requested time limit is invalid (missing or exceeds some limit)", "time_limit"),
        ("Requested node configuration is not available", "too_large"),
        ("Node count specification invalid", "too_large"),
        ("More processors requested than permitted", "too_large"),
        ("Memory required by task is not available", "too_large"),
        ("User's group not permitted to use this partition", "permission"),
        ("Access/permission denied", "permission"),
        ("Unable to contact slurm controller (connect failure)", "no_controller"),
        ("Something that nobody has seen before", "refused"),
    ],
)
async def test_kinds(said: str, kind: str):
    """Each says what to do, and keeps Slurm's own words."""
    error = await refused(f"sbatch: error: Batch job submission failed: {said}\n")
    assert error.kind == kind
    assert said in str(error)
    assert error.fix


async def test_the_nearest_account_is_named():
    """From what the accounting knows of the user."""
    error = await refused(
        "sbatch: error: Invalid account or account/partition combination specified",
        account="reserch",
        known="research\nphysics\n",
    )
    assert "'research'" in str(error)
    assert "physics" in str(error)

"""A real vLLM in a job of a real Slurm cluster."""

from __future__ import annotations

import pytest
from tests.support.command_line import SMALL_VLLM, Finished, House, journaled, sums
from tests.support.slurm_cluster import SlurmCluster
from tests.support.slurm_jobs import Job, write_launch

from enginehouse.provisioning.models import ResolvedModel

pytestmark = [pytest.mark.slurm, pytest.mark.engine]


def test_from_the_file_to_the_run(real_house: House, smollm2: ResolvedModel, cluster: SlurmCluster):
    """It serves, evaluates, and leaves a run and no process."""

    def call(*words: str) -> Finished:
        return real_house.run(*words, **cluster.environment)

    items, _ = sums(right=4)
    launch_file = write_launch(real_house, model=smollm2.path, server=SMALL_VLLM, items=items)
    job = Job(call, launch_file, patience=800)
    assert job.reach("complete", "failed", "interrupted")["state"] == "complete", job.log()
    assert set(journaled(job.folder / "run").samples.values()) == {1}
    assert len(journaled(job.folder / "run").outcomes) == 4
    shown = call("show", str(job.folder / "run"), "--json")
    assert shown.code == 0, shown.err

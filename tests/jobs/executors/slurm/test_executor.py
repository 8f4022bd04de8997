"""Jobs on a real Slurm cluster, whose daemons run on this machine."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from tests.support.slurm_cluster import SlurmCluster

from enginehouse.jobs.executors.slurm.executor import SlurmExecutor
from enginehouse.jobs.executors.slurm.settings import SlurmSettings
from enginehouse.runtime.context import Context
from enginehouse.testing.check_executor import CASES, check_executor

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def executor(folder: Path, **settings: object) -> SlurmExecutor:
    """An executor that calls sbatch on this machine."""
    return SlurmExecutor(
        SlurmSettings.model_validate({"output_dir": str(folder), **settings}), Context()
    )


@pytest.mark.parametrize("name", CASES)
async def test_conformance(cluster: SlurmCluster, tmp_path: Path, name: str):
    """What every executor must do."""
    failures = await check_executor(
        lambda: executor(tmp_path), folder=PurePosixPath(tmp_path), only={name}
    )
    assert failures == []

"""Jobs on this machine."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from enginehouse.jobs.executors.local import LocalExecutor, LocalSettings
from enginehouse.runtime.context import Context
from enginehouse.testing.check_executor import CASES, check_executor

pytestmark = pytest.mark.slow


def executor(folder: object) -> LocalExecutor:
    """An executor of jobs on this machine."""
    return LocalExecutor(LocalSettings(output_dir=str(folder), kill_grace=1), Context())


@pytest.mark.parametrize("name", CASES)
async def test_conformance(tmp_path, name: str):
    """What every executor must do."""
    failures = await check_executor(
        lambda: executor(tmp_path), folder=PurePosixPath(tmp_path), only={name}
    )
    assert failures == []

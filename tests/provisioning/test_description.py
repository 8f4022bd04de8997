"""Environments that are asked to describe themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginehouse.core.errors import ProvisioningError
from enginehouse.processes.tree import identify
from enginehouse.provisioning.description import describe


@pytest.mark.slow
async def test_a_python_that_hangs(tmp_path: Path):
    """It is killed after a while, with everything it started."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nsleep 300 & echo $! > child\nsleep 300\n")
    python.chmod(0o755)
    with pytest.raises(ProvisioningError, match=str(python)) as caught:
        await describe(
            python,
            engine="vllm",
            payload=tmp_path / "describe.py",
            log=tmp_path / "describe.log",
            managed=False,
            patience=0.5,
        )
    assert "0.5 s" in str(caught.value.why)
    assert identify(int((tmp_path / "child").read_text())) is None

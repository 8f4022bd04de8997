"""What every test gets: a home of its own, and no settings of the person who runs the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_home(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unit tests write below their own folder; engine tests share the built environment."""
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name in list(os.environ):
        if (
            name.startswith(("ENGINEHOUSE_", "GRAIL_", "VLLM_", "HF_"))
            and name != "ENGINEHOUSE_HOME"
        ):
            monkeypatch.delenv(name)
    if request.node.get_closest_marker("engine") is None:
        monkeypatch.setenv("ENGINEHOUSE_HOME", str(tmp_path / "home"))

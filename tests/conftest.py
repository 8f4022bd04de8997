"""What every test gets: a home of its own, and no settings of the person who runs the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_SETTINGS = (
    "ANTHROPIC_",
    "ENGINEHOUSE_",
    "GRAIL_",
    "HF_",
    "MEGATRON_",
    "OPENAI_",
    "OPENROUTER_",
    "VLLM_",
)


@pytest.fixture(autouse=True)
def _own_home(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unit tests write below their own folder; engine tests share the built environment."""
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name in list(os.environ):
        if name.startswith(_SETTINGS) and name != "ENGINEHOUSE_HOME":
            monkeypatch.delenv(name)
    if request.node.get_closest_marker("engine") is None:
        monkeypatch.setenv("ENGINEHOUSE_HOME", str(tmp_path / "home"))

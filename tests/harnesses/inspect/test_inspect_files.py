"""Tasks in files of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginehouse.core.errors import HarnessError
from enginehouse.harnesses.base import SupportsTaskFiles
from enginehouse.harnesses.registry import load_harness


def test_a_file_is_found_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the working directory first, then in the folder of the user's tasks."""
    inspect = load_harness("inspect")
    assert isinstance(inspect, SupportsTaskFiles)
    here, there = tmp_path / "here", tmp_path / "there"
    for file in (here / "sums.py", there / "sums.py", there / "others.py"):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    monkeypatch.chdir(here)
    assert inspect.find_file("inspect_evals/gsm8k", include_path=there) is None
    assert inspect.find_file("sums.py@sums", include_path=there) == here / "sums.py"
    assert inspect.find_file("others.py", include_path=there) == there / "others.py"
    with pytest.raises(HarnessError, match=r"'other\.py@sums'") as raised:
        inspect.find_file("other.py@sums", include_path=there)
    assert raised.value.kind == "unknown_task"
    assert "did you mean others.py" in str(raised.value.fix)

"""The journal of a training's evaluations."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from enginehouse.core.errors import StoreError
from enginehouse.training.records import JOURNAL, Evaluation, append_evaluation, read_evaluations

EVALUATION = Evaluation(step=7, started=datetime(2026, 1, 2, tzinfo=UTC), seconds=1.5)


def test_a_torn_line_is_moved_aside_with_a_warning(tmp_path, caplog):
    """What a power cut left does not stop the next step, and is kept beside the journal."""
    append_evaluation(tmp_path, EVALUATION)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"step":8,"sta')
    append_evaluation(tmp_path, EVALUATION)
    (kept,) = tmp_path.glob(f"{JOURNAL}.cut*")
    assert kept.read_bytes() == b'{"step":8,"sta'
    assert str(kept) in caplog.text
    assert read_evaluations(tmp_path) == [EVALUATION, EVALUATION]


def test_a_file_of_something_else_is_left_alone(tmp_path):
    """Both ways; nothing of it is changed."""
    append_evaluation(tmp_path, EVALUATION)
    content = (tmp_path / JOURNAL).read_text().encode("utf-16")
    (tmp_path / JOURNAL).write_bytes(content)
    with pytest.raises(StoreError):
        append_evaluation(tmp_path, EVALUATION)
    with pytest.raises(StoreError):
        read_evaluations(tmp_path)
    assert (tmp_path / JOURNAL).read_bytes() == content

"""The log: one JSON object per line."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from enginehouse.runtime.context import Context
from enginehouse.tinker.logs import logging_to, noting_in_log


def test_every_record_is_a_line_with_all_its_fields(tmp_path: Path):
    """Tracebacks and line breaks included; nothing is written after the block."""
    file = tmp_path / "service.jsonl"
    logger = logging.getLogger("enginehouse.tinker.guard")
    with logging_to(file):
        logger.info("request\nof two lines", extra={"request_id": "r-1", "user": "ada"})
        try:
            int("what went wrong")
        except ValueError:
            logger.exception("a request failed", extra={"path": Path("/x")})
    logger.warning("after the block")
    first, second = (json.loads(line) for line in file.read_text().splitlines())
    assert first["message"] == "request\nof two lines"
    assert (first["level"], first["request_id"], first["user"]) == ("info", "r-1", "ada")
    assert second["path"] == "/x"
    assert "what went wrong" in second["traceback"]


def test_notes_are_logged_and_told(tmp_path: Path):
    """What the operator reads in the terminal can be found later."""
    told: list[str] = []
    with logging_to(tmp_path / "service.jsonl"):
        noting_in_log(Context(notify=told.append)).notify("100% ready")
    assert told == ["100% ready"]
    assert json.loads((tmp_path / "service.jsonl").read_text())["message"] == "100% ready"

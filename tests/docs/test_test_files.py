"""How test files are named and marked (CONTRIBUTING.md, docs/testing.md)."""

from __future__ import annotations

import re
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
# Named after what a user does, or after a document or a program outside the package.
OTHER_ROOMS = {"benchmarks", "cli", "docs", "end_to_end", "examples"}
# About a behaviour of several files, or about a file that is elsewhere.
BEHAVIOURS = {
    "arena/test_kill.py",
    "arena/test_tools.py",
    "client/test_faults.py",
    "client/test_hosted.py",
    "core/test_patterns.py",
    "diagnosis/test_messages.py",
    "diagnosis/test_reported_logs.py",
    "dialects/test_growth.py",
    "evaluation/test_kill.py",
    "games/test_conformance.py",
    "games/test_played.py",
    "gateway/test_clients.py",
    "gateway/test_crashes.py",
    "gateway/test_stopping.py",
    "harnesses/test_versions.py",
    "jobs/exporters/test_trackers.py",
    "jobs/test_secrets.py",
    "provisioning/test_llama_server.py",
    "provisioning/test_pin_engines.py",
    "tasks/test_growth.py",
    "tinker/routes/test_command_line.py",
    "tinker/sampling/test_engines.py",
    "tools/test_growth.py",
    "training/test_sent_weights.py",
}


def test_a_test_file_has_the_name_of_what_it_tests():
    """Of a source file or folder of its room, or it begins with it; or it needs a real engine."""
    others = set()
    for path in TESTS.rglob("test_*.py"):
        file = path.relative_to(TESTS)
        room = ROOT / "src/enginehouse" / file.parts[0]
        source = {found.stem for found in room.rglob("*") if found.suffix in {"", ".py"}}
        words = file.stem.removeprefix("test_").split("_")
        beginnings = set(accumulate(words, "{}_{}".format))
        if file.parts[0] in OTHER_ROOMS or "real" in {*file.parts, *beginnings}:
            continue
        if not beginnings & source:
            others.add(str(file))
    assert others == BEHAVIOURS


def test_no_module_is_slow_as_a_whole():
    """Only tests and classes are, so that `make test-fast` runs the others of their file."""
    marked = re.compile(r"^pytestmark\b[^\n]*(\n [^\n]*)*mark\.slow", re.MULTILINE)
    files = TESTS.rglob("test_*.py")
    assert [str(path) for path in files if marked.search(path.read_text())] == []

"""The replay in a real browser: it opens from disk, and the console stays empty."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.support.made_curves import made_curve
from tests.support.made_experiments import made_spec, make_experiment

from enginehouse.arena.replay import replay_matches
from enginehouse.report.curve_page import curve_page
from enginehouse.report.replay_page import write_replay

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
HOSTILE = '<script>alert(1)</script><img src="x" onerror="y()"> {choice}'

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


class Shown:
    """A page after it was loaded: its document, and what the console says."""

    def __init__(self, file: Path, *, fragment: str = "") -> None:
        command = [
            CHROMIUM or "",
            "--headless",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={file.parent / 'profile'}",
            "--virtual-time-budget=5000",
            "--dump-dom",
            file.as_uri() + fragment,
        ]
        if os.geteuid() == 0:
            command.insert(1, "--no-sandbox")
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        self.document = done.stdout
        self.console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_the_console_is_watched(tmp_path: Path):
    """A page with an error, so that an empty console means something."""
    file = tmp_path / "broken.html"
    file.write_text('<!doctype html><script src="missing.js"></script><script>x.y()</script>')
    assert any("x is not defined" in line for line in Shown(file).console)


def test_the_replay_of_a_whole_experiment(tmp_path: Path):
    """From disk, by its file name; a link of the list opens its match; scripts stay words."""
    cooperation = {"base": 0.7, "<b>lora</b>": 0.4}
    run = make_experiment(
        tmp_path / "run",
        made_spec(cooperation, matches=50, rounds=10, agents=5),
        cooperation,
        words=HOSTILE,
    )
    matches = replay_matches(run.journal_path)
    (file,) = write_replay(matches, tmp_path / "replay.html", title=HOSTILE, subtitle="red_black")
    shown = Shown(file, fragment="#match-120")
    assert shown.console == []
    opened = re.findall(r"<details[^>]* open[^>]*>", shown.document)
    assert len(opened) == 1
    assert 'id="m120"' in opened[0]
    assert shown.document.count("<details") == 200
    assert "<script" not in shown.document
    assert "<img" not in shown.document


def test_the_curve(tmp_path: Path):
    """The other page that is written to disk."""
    file = tmp_path / "curve.html"
    file.write_text(curve_page(made_curve(("step-1", "step-2"))))
    shown = Shown(file)
    assert shown.console == []
    assert "<svg" in shown.document

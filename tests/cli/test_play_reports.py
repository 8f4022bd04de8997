"""`enginehouse play analyze` and `play export`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from tests.support.command_line import House
from tests.support.made_experiments import made_spec, make_experiment

COOPERATION = {"base": 0.7, "lora": 0.4}


@pytest.fixture
def played(tmp_path: Path) -> str:
    """The folder of a played experiment."""
    spec = made_spec(COOPERATION, matches=6, agents=2)
    run = make_experiment(tmp_path / "run", spec, COOPERATION, calls=True, words="\x1b]0;x\x07 ok")
    return str(run.folder)


def test_analyze_for_people_programs_and_spreadsheets(call, played: str):
    """The same figures three times."""
    text, document, table = (
        call("play", "analyze", played, *o) for o in ([], ["--json"], ["--csv"])
    )
    assert (text.code, document.code, table.code) == (0, 0, 0), text.err
    cooperation = document.report["teams"][0]["figures"]["cooperation"]
    assert f"{cooperation['value']:.1%}" in text.out
    rows = list(csv.DictReader(io.StringIO(table.out)))
    row = next(r for r in rows if (r["what"], r["measure"]) == ("team", "cooperation"))
    assert float(row["value"]) == cooperation["value"]
    assert float(row["high"]) == cooperation["interval"]["high"]


def test_the_replay_is_written_where_it_is_wanted(call, played: str, tmp_path: Path):
    """And named, without getting into the way of the document."""
    file = tmp_path / "replay.html"
    done = call("play", "analyze", played, "--html", str(file), "--json")
    assert done.code == 0, done.err
    assert done.report["finished"] == 24
    assert str(file) in done.err
    assert file.read_text().count("<details") == 24


def test_export_prints_a_line_for_every_agent(call, played: str):
    """JSON lines without control characters."""
    done = call("play", "export", played)
    assert done.code == 0, done.err
    assert "\x1b" not in done.out
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert len(lines) == 24 * 2 * 2
    assert lines[0]["steps"][0]["text"] == "\x1b]0;x\x07 ok"
    assert lines[0]["reward"] == lines[0]["scores"][lines[0]["seat"]]


def test_what_cannot_be_analyzed(call, house: House, played: str):
    """Two formats at once, a run that does not exist, a replay where nothing can be written."""
    assert call("play", "analyze", played, "--json", "--csv").code == 2
    assert call("play", "analyze", "nothing").code == 8
    assert call("play", "export", "nothing").code == 8
    into = Path(played) / "run.json" / "replay.html"
    assert call("play", "analyze", played, "--html", str(into)).code == 8

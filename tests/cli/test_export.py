"""`enginehouse launch export`, `eval --export`, and a launch file's section `export`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.test_launch import Launches
from tests.support.command_line import House, sums


@pytest.fixture
def words(house: House) -> tuple[str, ...]:
    """What `eval` takes for twelve sums, of which three are answered wrongly."""
    house.model()
    items, canned = sums(right=9, wrong=3)
    return ("tiny", "--task", str(house.task(items)), "--env", house.answers(canned), "-q")


def runs_in(path: Path) -> list[str]:
    """The ids of the runs in a JSON file."""
    return [run["labels"]["run"] for run in json.loads(path.read_text())["runs"]]


def export_file(house: House, **sections: Any) -> str:
    """A file with a section `export`."""
    return str(house.write("export.yaml", yaml.safe_dump({"export": sections})))


@pytest.mark.slow
def test_runs_to_files(house: House, call, words):
    """By id and by folder, twice; the table says where the figures are."""
    run, other = (call("eval", *words, "--json").report["run"] for _ in range(2))
    path = house.work / "figures.json"
    (folder,) = (folder for folder in house.runs if folder.name == other)
    done = call("launch", "export", run, str(folder), "--to", "json", "--out", str(path))
    assert done.code == 0, done.err
    assert str(path) in done.out
    again = call("launch", "export", run, "--to", "json", "--out", str(path), "--json")
    assert again.report == [{"run": run, "to": "json", "place": str(path), "figures": 1}]
    assert runs_in(path) == [run, other]
    figure = json.loads(path.read_text())["runs"][0]["figures"][0]
    assert (figure["value"], figure["n"], figure["metric"]) == (0.75, 12, "headline")
    assert figure["low"] < 0.75 < figure["high"]


@pytest.mark.slow
def test_an_evaluation_exports_at_its_end(house: House, call, words):
    """As the file says; wrong settings are refused before anything is started."""
    path = house.work / "out/figures.csv"
    file = export_file(house, csv={"path": str(path)})
    done = call("eval", *words, "--export", file, "--json")
    assert done.code == 0, done.err
    with path.open(newline="") as opened:
        (row,) = csv.DictReader(opened)
    assert (row["run"], row["value"]) == (done.report["run"], "0.75")
    known = len(house.runs)
    for wrong in (
        export_file(house, csv={"pth": "x"}),
        export_file(house),
        export_file(house, cvs={"path": "x"}),
        "nosuch.yaml",
    ):
        refused = call("eval", *words, "--export", wrong)
        assert (refused.code, refused.out) == (2, "")
    assert len(house.runs) == known


@pytest.mark.slow
def test_a_failed_export_keeps_the_run(house: House, call, words):
    """The report is printed, the run is complete, and exporting it later needs no new answer."""
    path = house.work / "figures.json"
    path.write_text("my own notes")
    file = export_file(house, json={"path": str(path)})
    done = call("eval", *words, "--export", file, "--json")
    assert done.code == 13
    assert done.report["complete"]
    path.unlink()
    assert call("launch", "export", done.report["run"], "--config", file).code == 0
    assert runs_in(path) == [done.report["run"]]


@pytest.mark.slow
def test_what_is_refused(house: House, call, words):
    """Exit code 2 for what is wrong on the command line, 8 for a run that does not exist."""
    run = call("eval", *words, "--json").report["run"]
    out = ("--out", str(house.work / "x"))
    for wrong in (
        (),
        ("--to", "nosuch"),
        ("--to", "json"),
        ("--to", "json", "--to", "csv", *out),
        ("--to", "json", *out, "-o", "nosuch=1"),
        ("--to", "json", *out, "-o", "path"),
        ("--config", "nosuch.yaml"),
    ):
        done = call("launch", "export", run, *wrong)
        assert (done.code, done.out) == (2, ""), wrong
        assert "Traceback" not in done.err
    assert call("launch", "export", "nosuch", "--to", "json", *out).code == 8


@pytest.mark.slow
def test_a_job_exports_at_its_end(house: House, call):
    """To the job's folder; a resumed job exports again, and so does its id."""
    launches = Launches(house, call)
    values = yaml.safe_load(launches.file().read_text())
    values["export"] = {
        "json": {"path": "figures.json", "copy_logs": True},
        "csv": {"path": "figures.csv"},
        "env_vars": {"SOME_TRACKER": "lit:x"},
    }
    values["execution"]["auto_export"] = {"destinations": ["json"]}
    file = house.write("launch.yaml", yaml.safe_dump(values, sort_keys=False))
    dry = call("launch", "run", "--config", str(file), "--dry-run")
    assert dry.code == 0, dry.err
    assert "export.json.copy_logs" in dry.out
    record = launches.run(file)
    assert launches.ended(record["id"])["status"]["state"] == "complete"
    folder = Path(record["job"]["folder"])
    (run,) = runs_in(folder / "figures.json")
    assert not (folder / "figures.csv").exists()
    path = house.work / "later.csv"
    for reference in (record["id"][:8], str(folder / "run")):
        done = call("launch", "export", reference, "--to", "csv", "--out", str(path))
        assert done.code == 0, done.err
    with path.open(newline="") as opened:
        assert [row["run"] for row in csv.DictReader(opened)] == [run]
    assert call("launch", "resume", record["id"]).code == 0
    launches.ended(record["id"])
    assert runs_in(folder / "figures.json") == [run]


def test_a_wrong_section_is_refused_before_the_job(house: House, call):
    """With the file's name; nothing is submitted."""
    launches = Launches(house, call)
    values = yaml.safe_load(launches.file().read_text())
    for wrong in ({"jsn": {"path": "x"}}, {"json": {"paht": "x"}}, {"json": "x"}):
        values["export"] = wrong
        file = house.write("launch.yaml", yaml.safe_dump(values, sort_keys=False))
        done = call("launch", "run", "--config", str(file))
        assert (done.code, done.out) == (2, ""), wrong
        assert "launch.yaml" in done.err
    assert not (house.work / "jobs").exists()


@pytest.mark.slow
def test_a_full_disk(house: House, call, words):
    """Exit code 8, and no half-written file."""
    run = call("eval", *words, "--json").report["run"]
    done = call("launch", "export", run, "--to", "csv", "--out", "/dev/full")
    assert done.code == 8
    assert "/dev/full" in done.err


@pytest.mark.slow
def test_another_program_may_read_it_through_a_pipe(house: House, call, words):
    """/dev/stdout takes the file's content."""
    run = call("eval", *words, "--json").report["run"]
    done = house.run("launch", "export", run, "--to", "csv", "--out", "/dev/stdout")
    assert done.code == 0, done.err
    assert f"\n{run}," in done.out

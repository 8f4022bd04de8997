"""JSON, CSV and Parquet: every figure with its labels, and a second export that replaces."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from tests.support.comparable_runs import ran, wrong_below
from tests.support.evaluation_fakes import question, solve

from enginehouse.core.errors import (
    BadRequestError,
    ConfigurationError,
    ExportError,
    StoreError,
    UnknownNameError,
)
from enginehouse.jobs.export import destination, destinations, export_run, overrides
from enginehouse.jobs.exporters.figures import COLUMNS, read_figures, rows_of
from enginehouse.jobs.exporters.registry import EXPORTERS
from enginehouse.store.runs import Run

FORMATS = ("json", "csv", "parquet")


def export(run: Run, kind: str, path: Path, **settings: Any) -> None:
    """Export one run to a file."""
    to = destination(kind, {"path": str(path), **settings}, origin="the test")
    (exported,) = export_run(run, [to])
    assert (exported.to, exported.place, exported.run) == (kind, str(path), run.info.id)


def rows_in(kind: str, path: Path) -> list[dict[str, Any]]:
    """The rows of a file: what is not known is None, everything else as it was written."""
    if kind == "json":
        runs = json.loads(path.read_bytes())["runs"]
        return [{**run["labels"], **figure} for run in runs for figure in run["figures"]]
    if kind == "parquet":
        return parquet.read_table(path).to_pylist()
    with path.open(newline="") as file:
        return [{k: v or None for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("kind", FORMATS)
async def test_every_figure_has_interval_n_and_labels(layout, tmp_path, kind):
    """The values are those of the run, in every column."""
    run = await ran(layout, wrong_below(5), samples=2, temperature=1.0)
    path = tmp_path / f"figures.{kind}"
    export(run, kind, path)
    expected = rows_of(read_figures(run))
    rows = rows_in(kind, path)
    assert [row["metric"] for row in rows][:2] == ["headline", "parts"]
    assert "pass@2" in {row["metric"] for row in rows}
    for row, own in zip(rows, expected, strict=True):
        assert list(row) == list(COLUMNS)
        if kind == "parquet":
            assert row == own
        for name in ("value", "low", "high", "confidence"):
            assert float(row[name]) == own[name]
        for name in ("task", "model", "weights_digest", "engine", "data_digest", "method"):
            assert row[name] == own[name]
        assert int(row["n"]) == own["n"]
        assert str(row["subset"]).lower() == "false"
    assert rows[0]["low"] is not None
    assert int(rows[0]["n"]) == 40


@pytest.mark.parametrize("kind", FORMATS)
async def test_a_second_export_updates(layout, tmp_path, kind):
    """The same run replaces its figures; another one's are kept; a third one is added."""
    one, other = [await ran(layout, wrong_below(n)) for n in (2, 9)]
    path = tmp_path / f"figures.{kind}"
    for run in (one, other, one):
        export(run, kind, path)
    rows = rows_in(kind, path)
    assert sorted({row["run"] for row in rows}) == sorted([one.info.id, other.info.id])
    assert len(rows) == len(read_figures(one).figures) + len(read_figures(other).figures)
    before = path.read_bytes()
    export(one, kind, path, log_metrics=["addone/headline"])
    rows = [row for row in rows_in(kind, path) if row["run"] == one.info.id]
    assert [row["metric"] for row in rows] == ["headline"]
    assert before != path.read_bytes()


@pytest.mark.parametrize("kind", FORMATS)
async def test_another_file_is_not_overwritten(layout, tmp_path, kind):
    """What is there and is not an export's stays as it is."""
    run = await ran(layout)
    path = tmp_path / "mine"
    for content in (b"a,b\n1,2\n", b'{"my": "own"}', b"\xff\xfe", b'{"format": 9, "runs": []}'):
        path.write_bytes(content)
        with pytest.raises(ExportError) as raised:
            export(run, kind, path)
        assert raised.value.kind == "unreadable"
        assert path.read_bytes() == content


@pytest.mark.parametrize("kind", FORMATS)
async def test_simultaneous_exports_lose_nothing(layout, tmp_path, kind):
    """Each of several reads, changes and replaces the file alone."""
    runs = [await ran(layout, size=3) for _ in range(4)]
    path = tmp_path / "figures"
    threads = [threading.Thread(target=export, args=(run, kind, path)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {row["run"] for row in rows_in(kind, path)} == {run.info.id for run in runs}


async def test_a_task_without_a_score_says_why(layout, tmp_path):
    """A row without a value, so that nobody takes it for a missing task."""

    def broken(request):
        return BadRequestError("x", status=400) if question(request) < 8 else solve(request)

    run = await ran(layout, broken)
    export(run, "csv", tmp_path / "figures.csv")
    row = rows_in("csv", tmp_path / "figures.csv")[0]
    assert (row["metric"], row["value"]) == ("headline", None)
    assert "8 of 20 samples failed" in row["why_none"]


async def test_files_that_cannot_be_written(layout, tmp_path):
    """A folder in their place, or a folder that is a file."""
    run = await ran(layout)
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file/figures.json", tmp_path):
        with pytest.raises((StoreError, ExportError)):
            export(run, "json", path)


async def test_the_original_launchers_local_exporter(layout, tmp_path):
    """A folder, a format and a name; a key without effect is named."""
    run = await ran(layout)
    section = {"output_dir": str(tmp_path), "format": "csv", "copy_logs": True}
    (to,) = destinations({"local": section, "gsheets": {"sheet": 1}}, origin="launch.yaml")
    assert list(to.not_acted_on) == ["export.local.copy_logs"]
    export_run(run, [to])
    assert len(rows_in("csv", tmp_path / "processed_results.csv")) == 2


def test_wrong_settings_are_refused():
    """An unknown exporter or key names what is known; nothing is imported for that."""
    with pytest.raises(UnknownNameError):
        destination("wandbb", {}, origin="the test")
    for name, values in (
        ("json", {}),
        ("json", {"pth": "x"}),
        ("wandb", {"entity": "x"}),
        ("wandb", {"project": "x", "mode": "sideways"}),
        ("mlflow", {"tags": [1]}),
        ("mlflow", {"tracking_uri": "https://user:secret@host"}),
    ):
        with pytest.raises(ConfigurationError) as raised:
            destination(name, values, origin="the test")
        assert "secret" not in str(raised.value)
    with pytest.raises(ConfigurationError):
        destinations({"json": "figures.json"}, origin="the test")


def test_settings_on_the_command_line():
    """Nested by points, read as YAML, also as the original launcher writes them."""
    words = ["tracking_uri=http://host:1", "export.mlflow.tags.team=a=b", "+tags.big=true"]
    assert overrides(words, to="mlflow") == {
        "tracking_uri": "http://host:1",
        "tags": {"team": "a=b", "big": True},
    }
    for wrong in ("", "=1", "key", "key=[", "a=!!python/object:os.system {}"):
        with pytest.raises(ConfigurationError):
            overrides([wrong], to="mlflow")


@pytest.mark.slow
def test_nothing_is_imported_before_it_is_needed(tmp_path):
    """Every exporter can be made without its package, or the hundreds of modules of it."""
    program = f"""
import sys
from enginehouse.jobs.export import destination
from enginehouse.jobs.exporters.registry import EXPORTERS
for name in EXPORTERS.names():
    values = {{"path": {str(tmp_path)!r}}} if name in {FORMATS!r} else {{}}
    destination(name, values | ({{"project": "x"}} if name == "wandb" else {{}}), origin="x")
print(sorted({{"mlflow", "wandb", "pyarrow"}} & sys.modules.keys()))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.strip() == "[]"
    assert set(EXPORTERS.names()) >= {"json", "csv", "parquet", "mlflow", "wandb", "local"}


@pytest.mark.parametrize(("name", "values"), [("mlflow", {}), ("wandb", {"project": "x"})])
async def test_a_missing_package_says_what_to_install(layout, name, values, monkeypatch):
    """As an error of the export, with the extra's name."""
    monkeypatch.setitem(sys.modules, name, None)
    run = await ran(layout)
    with pytest.raises(ExportError) as raised:
        export_run(run, [destination(name, values, origin="the test")])
    assert raised.value.kind == "missing_package"
    assert f"enginehouse[{name}]" in (raised.value.fix or "")

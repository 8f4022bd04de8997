"""Exports runs to the real MLflow and Weights & Biases, and says what is there then, as JSON.

Run by the environment of tests/jobs/exporters: this file, then the folders of two runs, then a
folder to write to. The first run is exported, the second, and the first once more with a changed
figure.
"""

# ruff: noqa: T201 (a program whose output is its interface)
from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.core.errors import ExportError
from enginehouse.jobs.export import destination
from enginehouse.jobs.exporters.figures import ExportedRun, read_figures
from enginehouse.store.layout import Layout
from enginehouse.store.runs import open_run

_BLOCK = 32768


def changed(run: ExportedRun) -> ExportedRun:
    """The run with another headline, and without a figure that it had."""
    first, *others, _ = run.figures
    headline = msgspec.structs.replace(first, value=0.125)
    return msgspec.structs.replace(run, figures=(headline, *others))


def mlflow_runs(address: str) -> list[dict[str, Any]]:
    """Every run of the experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name("ours")
    assert experiment is not None
    found = []
    for run in client.search_runs([experiment.experiment_id]):
        identifier = run.info.run_id
        history = client.get_metric_history(identifier, "addone/headline")
        path = client.download_artifacts(identifier, "enginehouse.json")
        found.append(
            {
                "name": run.info.run_name,
                "status": run.info.status,
                "metrics": run.data.metrics,
                "tags": run.data.tags,
                "history": [metric.value for metric in history],
                "artifact": json.loads(Path(path).read_text()),
            }
        )
    return found


def records_in(log: bytes) -> Iterator[bytes]:
    """The records of a log: LevelDB's format, behind a header of 7 bytes.

    Blocks of 32 KiB hold pieces: a checksum (4 bytes), a length (2), a type (1: whole, 2: first,
    3: middle, 4: last) and the data (https://github.com/google/leveldb/blob/main/doc/log_format.md).
    """
    place, data = 7, b""
    while place + 7 <= len(log):
        left = _BLOCK - place % _BLOCK
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(log[place + 4 : place + 6], "little"), log[place + 6]
        data += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield data
            data = b""


def wandb_runs(folder: Path) -> list[dict[str, Any]]:
    """Every record of a run, its configuration and its summary, as `wandb sync` would upload it."""
    from wandb.proto import wandb_internal_pb2 as pb

    found = []
    for path in sorted(folder.rglob("run-*.wandb")):
        run: dict[str, Any] = {"config": {}, "summary": {}, "history": 0, "output": 0, "files": []}
        for data in records_in(path.read_bytes()):
            record = pb.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run |= {"id": record.run.run_id, "project": record.run.project}
                for item in record.run.config.update:
                    run["config"][item.key or ".".join(item.nested_key)] = json.loads(
                        item.value_json
                    )
            elif kind == "summary":
                for item in record.summary.update:
                    key = item.key or ".".join(item.nested_key)
                    run["summary"][key] = json.loads(item.value_json)
            elif kind == "history":
                run["history"] += 1
            elif kind in ("output", "output_raw"):
                run["output"] += 1
            elif kind == "files":
                run["files"] += [file.path for file in record.files.files]
        found.append(run)
    return found


def main() -> None:
    """Export, and print what is there."""
    one, other, place = sys.argv[1:]
    layout = Layout.from_environment()
    runs = [read_figures(open_run(layout, folder)) for folder in (one, other)]
    address = f"sqlite:///{place}/mlflow.db"
    mlflow = destination(
        "mlflow",
        {"tracking_uri": address, "experiment_name": "ours", "tags": {"team": "evaluation"}},
        origin="the test",
    )
    wandb = destination(
        "wandb", {"project": "ours", "mode": "offline", "dir": f"{place}/wandb"}, origin="the test"
    )
    places = [to.exporter.export(run) for to in (mlflow, wandb) for run in runs]
    for to in (mlflow, wandb):
        to.exporter.export(runs[0])
        to.exporter.export(changed(runs[0]))
    refused = {}
    for name, settings in (
        ("mlflow", {"tracking_uri": "nosuch://host"}),
        ("wandb", {"project": "ours", "mode": "online"}),
    ):
        try:
            destination(name, settings, origin="the test").exporter.export(runs[0])
        except ExportError as error:
            refused[name] = {"kind": error.kind, "text": str(error)}
    found = {
        "places": places,
        "mlflow": mlflow_runs(address),
        "wandb": wandb_runs(Path(place) / "wandb"),
        "refused": refused,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()

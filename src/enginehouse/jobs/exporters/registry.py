"""The exporters by name."""

from __future__ import annotations

from enginehouse.core.registry import Registry

EXPORTERS = Registry(
    "exporter",
    {
        "csv": "enginehouse.jobs.exporters.csv:CsvExporter",
        "json": "enginehouse.jobs.exporters.json:JsonExporter",
        "local": "enginehouse.jobs.exporters.local:LocalExporter",
        "mlflow": "enginehouse.jobs.exporters.mlflow:MlflowExporter",
        "parquet": "enginehouse.jobs.exporters.parquet:ParquetExporter",
        "wandb": "enginehouse.jobs.exporters.wandb:WandbExporter",
    },
    group="enginehouse.exporters",
)

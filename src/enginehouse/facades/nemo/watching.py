"""The launcher's `watch`: its options, and its older YAML, as commands of `enginehouse watch`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.strict_model import StrictModel
from enginehouse.deployment.configuration import parse, read_yaml

_MARKERS = ("metadata.json", "config.yaml", "config.json")
_PATTERNS = ("iter_*", "step_*")
_HERE = ("localhost", "127.0.0.1")
_PLAIN = re.compile(r"[\w./@:+-]+")


class _Part(StrictModel):
    model_config = ConfigDict(use_attribute_docstrings=False)


class _Cluster(_Part):
    username: str | None = None
    hostname: str = "localhost"
    account: str | None = None
    partition: str | None = None
    output_dir: str | None = None
    sbtch_flags: Mapping[str, Any] = Field(default_factory=dict)
    sbatch_flags: Mapping[str, Any] = Field(default_factory=dict)

    def overrides(self) -> Iterator[str]:
        """The keys of a launch file that it replaces."""
        places = {
            "username": self.username,
            "hostname": None if self.hostname in _HERE else self.hostname,
            "account": self.account,
            "partition": self.partition,
            "output_dir": self.output_dir,
        }
        flags = {**self.sbtch_flags, **self.sbatch_flags}
        places |= {f"sbatch_extra_flags.{name}": value for name, value in flags.items()}
        for name, value in places.items():
            if value is not None:
                yield f"++execution.{name}={_quoted(str(value))}"


class _Monitoring(_Part):
    directories: Annotated[tuple[str, ...], Field(min_length=1)]
    interval: Annotated[int, Field(ge=1)] | None = 300
    ready_markers: tuple[str, ...] = _MARKERS
    checkpoint_patterns: tuple[str, ...] = _PATTERNS
    order: Literal["last", "first"] = "last"


class WatchFile(_Part):
    """A file of nel-watch: where checkpoints appear, and what evaluates them."""

    cluster_config: _Cluster = _Cluster()
    monitoring_config: _Monitoring
    conversion_config: Mapping[str, Any] | None = None
    evaluation_configs: Annotated[tuple[str, ...], Field(min_length=1)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The launcher's own."""
    parser.add_argument("--config", required=True, help="an evaluation's file, or nel-watch's")
    parser.add_argument("--watch-dir", help="the folder in which checkpoints appear")
    parser.add_argument("--watch-config", help="nel-watch's file, in place of --watch-dir")
    parser.add_argument("--interval", type=int, default=300, help="seconds between two looks")
    parser.add_argument("--ready-markers", default="metadata.json,config.yaml")
    parser.add_argument("--checkpoint-patterns", default=",".join(_PATTERNS))
    parser.add_argument("--checkpoint-field", help="without effect: the checkpoint is the model")
    parser.add_argument("--order", choices=("newest", "oldest", "last", "first"), default="newest")
    parser.add_argument("--state-file", help="without effect: a watch knows its own folder's state")
    parser.add_argument("--resubmit-previous-sessions", action="store_true", help="without effect")
    parser.add_argument("--once", action="store_true", help="scan once")
    parser.add_argument("-n", "--dry-run", action="store_true")
    parser.add_argument("--tmux", nargs="?", const="")
    parser.add_argument("-o", "--override", action="append", default=[], help="KEY=VALUE")
    parser.add_argument("--env-file", help="a file of variables (default: .env, if there is one)")


def watch_commands(given: argparse.Namespace) -> list[list[str]]:
    """A command for each folder and each evaluation. Raises ConfigurationError."""
    if given.dry_run:
        raise ConfigurationError(
            "a watch has no dry run",
            fix="enginehouse launch run --config FILE --dry-run shows the job of a checkpoint",
        )
    if given.tmux is not None:
        raise ConfigurationError("a watch starts no tmux", fix="start it in tmux yourself")
    file = given.watch_config or given.config
    if given.watch_dir is None:
        values = read_yaml(Path(file))
        if given.watch_config is None and "monitoring_config" not in values:
            raise ConfigurationError(
                "there is no folder to watch", fix="give --watch-dir, or a file of nel-watch"
            )
        return list(_of_file(Path(file), values, given))
    if given.watch_config is not None:
        raise ConfigurationError("give either --watch-dir or --watch-config", fix="leave one out")
    monitoring = _Monitoring(
        directories=(given.watch_dir,),
        interval=None if given.once else given.interval,
        ready_markers=_names(given.ready_markers),
        checkpoint_patterns=_names(given.checkpoint_patterns),
        order="last" if given.order in ("newest", "last") else "first",
    )
    return [_command(given.watch_dir, given.config, monitoring, overrides=given.override)]


def _of_file(
    file: Path, values: Mapping[str, Any], given: argparse.Namespace
) -> Iterator[list[str]]:
    watch = parse(WatchFile, values, origin=str(file))
    if watch.conversion_config is not None:
        raise ConfigurationError(
            f"{file}: checkpoints are not converted here (conversion_config)",
            why="the folders must be in Hugging Face's format",
            fix="have the training, or a job of your own, convert them, and leave the section out",
        )
    monitoring = watch.monitoring_config
    if given.once:
        monitoring = monitoring.model_copy(update={"interval": None})
    evaluations = watch.evaluation_configs
    if given.watch_config is not None:  # whose evaluation is that of --config
        evaluations = (given.config,)
    overrides = [*watch.cluster_config.overrides(), *given.override]
    for directory in monitoring.directories:
        if ":" in directory.partition("/")[0]:
            raise ConfigurationError(
                f"{file}: {directory} is on another machine",
                fix="run the watch there, or name a folder that both machines see",
            )
        for evaluation in evaluations:
            path = Path(evaluation)
            beside = file.parent / path
            chosen = path if path.exists() or not beside.exists() else beside
            yield _command(directory, str(chosen), monitoring, overrides=overrides)


def _command(
    directory: str, evaluation: str, monitoring: _Monitoring, *, overrides: Sequence[str]
) -> list[str]:
    interval = monitoring.interval
    return [
        *("watch", directory, "--launch", evaluation),
        *(["--once"] if interval is None else ["--interval", str(interval)]),
        *(word for name in monitoring.checkpoint_patterns for word in ("--include", name)),
        *(word for name in monitoring.ready_markers for word in ("--ready-marker", name)),
        *("--order", monitoring.order),
        *(word for override in overrides for word in ("-o", override)),
    ]


def _quoted(value: str) -> str:
    """A value as Hydra's overrides take it."""
    if _PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split(",") if (name := part.strip()))

"""Run folders of other users, whose configuration would make this machine do things."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from enginehouse.commands.configuration import EvaluationConfig
from enginehouse.core.errors import UntrustedRunError
from enginehouse.deployment.configuration import AskConfig, parse, read_yaml
from enginehouse.harnesses.names import harness_task_name
from enginehouse.store.layout import Layout
from enginehouse.store.runs import Run, open_run

if TYPE_CHECKING:  # imports the games
    from enginehouse.commands.experiment_configuration import ExperimentConfig, ProviderConfig


def untrusted_settings(reference: str, *, layout: Layout) -> tuple[str, ...]:
    """What a run's configuration would run or reveal here, if it is another user's run.

    Empty for the user's own run. Raises as `open_run` and `read_config` do. Blocking.
    """
    run = open_run(layout, reference)
    if not _is_foreign(run, layout=layout):
        return ()
    config = read_experiment(run) if run.info.kind == "experiment" else read_config(run)
    return tuple(_risks(run, config))


def require_trust(run: Run, config: EvaluationConfig | ExperimentConfig, *, layout: Layout) -> None:
    """Raise UntrustedRunError if another user's configuration would run code or reveal a key."""
    if _is_foreign(run, layout=layout) and (risks := list(_risks(run, config))):
        raise UntrustedRunError(
            f"{run.folder} is another user's run, and its configuration decides what runs here",
            why="; ".join(risks),
            fix=f"read {run.config_path}; if you trust it, repeat the command with --trust-run",
        )


def read_config(run: Run) -> EvaluationConfig:
    """The configuration that an evaluation was started with. Raises ConfigurationError."""
    return parse(EvaluationConfig, read_yaml(run.config_path), origin=str(run.config_path))


def read_experiment(run: Run) -> ExperimentConfig:
    """The configuration that an experiment was started with. Raises ConfigurationError."""
    from enginehouse.commands.experiment_configuration import ExperimentConfig

    return parse(ExperimentConfig, read_yaml(run.config_path), origin=str(run.config_path))


def _is_foreign(run: Run, *, layout: Layout) -> bool:
    """Whether it is outside our own runs folder, or another user could have written it."""
    if layout.runs.resolve() not in run.folder.resolve().parents:
        return True
    ours = os.geteuid()
    files = (run.folder, run.config_path)
    return any(path.is_symlink() or path.stat().st_uid != ours for path in files)


def _risks(run: Run, config: EvaluationConfig | ExperimentConfig) -> Iterator[str]:
    """Every setting that would run code of the configuration's author, or send a key away."""
    if isinstance(config, EvaluationConfig):
        for task in config.settings.tasks:
            if harness_task_name(task.name) is not None:
                if ".py" in task.name:
                    yield f"tasks: {task.name} is a Python file, which would be run"
            elif task.name.endswith((".yaml", ".yml")):
                yield f"tasks: {task.name} may name a Python function that scores answers"
        if config.settings.include_path is not None:
            folder = config.settings.include_path
            yield f"include_path: tasks in {folder} may hold Python code, which would be run"
        yield from _risks_of_asking(config.plan, config.plan.url, "url")
        yield from _risks_of_announced(config.plan, "addresses")
        if (judge := config.settings.judge) is not None:
            yield from _risks_of_asking(judge, judge.url, "judge.url")
            yield from _risks_of_announced(judge, "judge.addresses")
    else:
        for provider in config.providers:
            yield from _risks_of_asking(provider, provider.base_url, "base_url")
    if run.info.left_out:
        yield f"run.json: the engine would get your {', '.join(run.info.left_out)}"


def _risks_of_announced(plan: AskConfig, key_of_folder: str) -> Iterator[str]:
    if plan.addresses is not None:
        key = plan.api_key_env or "your API key, if one is set,"
        yield (
            f"{key_of_folder}: {key} and the questions would be sent to those named in "
            f"{plan.addresses}"
        )


def _risks_of_asking(
    settings: AskConfig | ProviderConfig, url: str | None, key_of_url: str
) -> Iterator[str]:
    if settings.python is not None:
        yield f"python: {settings.python} would be run"
    server = settings.server
    if server.trust_remote_code:
        yield "server.trust_remote_code: Python code that comes with the model would be run"
    if server.extra_args:
        yield f"server.extra_args: the engine would get {server.extra_args!r}"
    if server.env_vars:
        yield f"server.env_vars: the engine would get {', '.join(server.env_vars)}"
    if server.env_names:
        yield f"server.env_names: the engine would get your {', '.join(server.env_names)}"
    if url is not None:
        key = settings.api_key_env or "your API key, if one is set,"
        yield f"{key_of_url}: {key} and the questions would be sent to {url}"

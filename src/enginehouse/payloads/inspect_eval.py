"""Runs Inspect's tasks against an OpenAI-compatible endpoint.

Run in Inspect's environment. The endpoint's address and key are in ENGINEHOUSE_BASE_URL and
ENGINEHOUSE_API_KEY. Logs are Inspect's own, in `folder`/logs; what a run keeps of each task
is copied to `folder`/results: NUMBER.json, and NUMBER.jsonl with the samples.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import random
import shutil
import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import inspect_tasks
from harness_reports import Failure, Reports, run, write_whole
from inspect_failures import (
    explained,
    failure_of,
    hopeless_failure,
    sandbox_failure,
    tools_failure,
)

# Inspect reads ENGINEHOUSE_BASE_URL and ENGINEHOUSE_API_KEY for this service.
_CHAT = "openai-api/enginehouse"
_TEXT = "openai-api-completions/enginehouse"  # for models without a chat template
# What harnesses/inspect/log.py reads.
_SAMPLE = {"id", "epoch", "input", "target", "messages", "output", "scores", "error"}
_PROBE = 5.0  # seconds


class Runner:
    """One run of the program."""

    def __init__(self, request: dict[str, Any], reports: Reports) -> None:
        self.request = request
        self.reports = reports
        self.folder = Path(request["folder"])
        self.inspect = importlib.import_module("inspect_ai")
        self.task = ""  # that is running

    def load(self, name: str, spec: str) -> Any:
        """The task called `name`, with its data set."""
        loader = importlib.import_module("inspect_ai._eval.loader")
        registry = importlib.import_module("inspect_ai._util.registry")
        arguments = self.request["arguments"]
        with explained(name):
            known_spec = self._require_known(name, spec)
            (task,) = loader.load_tasks([known_spec], arguments)
            function = registry.registry_lookup("task", registry.registry_info(task).name)
        _require_arguments(name, arguments, function)
        _require_sandbox(name, task)
        return task

    def evaluate(self, number: int, name: str, task: Any) -> None:
        """Ask and score a task, and copy what its log says."""
        self.task = name
        with explained(name):
            (log,) = self.inspect.eval(task, **self._options(name, task))
        if log.status != "success":
            why = log.error.message if log.error else f"its log has the status {log.status}"
            raise failure_of(name, why)
        self._copy(number, name, log)

    def _require_known(self, name: str, spec: str) -> str:
        """What Inspect loads for `name`."""
        file, _, task = spec.partition("@")
        if Path(file).is_absolute():
            names = [entry.rpartition("@")[2] for entry in inspect_tasks.tasks_in(Path(file))]
            if task in names:
                return spec
            if not task and len(names) == 1:
                return f"{file}@{names[0]}"
            shown = [f"{Path(file).name}@{known}" for known in names]
            if not task and names:
                raise Failure(
                    f"{name} has several tasks",
                    kind="unknown_task",
                    fix=f"name one of them: {', '.join(shown)}",
                )
            raise inspect_tasks.unknown_task(name, shown)
        known = inspect_tasks.packaged_tasks()
        if spec not in known:
            if self.request["include_path"]:
                known += inspect_tasks.tasks_in(Path(self.request["include_path"]))
            raise inspect_tasks.unknown_task(name, known)
        return spec

    def _options(self, name: str, task: Any) -> dict[str, Any]:
        """The arguments of inspect_ai.eval."""
        request = self.request
        seed = request["seed"]
        repeats = request["samples"] or task.epochs or 1
        if seed is not None and repeats > 1:
            # Inspect sends the same seed for every repeat, and so would get the same answers.
            print(f"{name} asks every item {repeats} times: without a seed", flush=True)
            seed = None
        top_k = request["top_k"]
        generation = {
            "max_connections": request["concurrency"],
            "max_retries": request["max_retries"],
            "attempt_timeout": request["request_timeout"],
            "system_message": request["system"],
            "max_tokens": request["max_tokens"],
            "temperature": request["temperature"],
            "top_p": request["top_p"],
            "seed": seed,
            # Inspect itself sends top_k to other services only.
            "extra_body": None if top_k is None else {"top_k": top_k},
        }
        options = {
            "model": f"{_CHAT if request['chat'] else _TEXT}/{request['model']}",
            "display": "plain",
            "log_dir": str(self.folder / "logs"),
            "log_format": "eval",
            "log_header_only": True,
            "log_realtime": False,
            "score_display": False,
            "ctl_server": False,
            "fail_on_error": False,
            "limit": request["limit"],
            "epochs": request["samples"],
        }
        parameters = inspect.signature(self.inspect.eval).parameters  # older versions have fewer
        return {
            **{key: value for key, value in options.items() if key in parameters},
            **{key: value for key, value in generation.items() if value is not None},
        }

    def _copy(self, number: int, name: str, log: Any) -> None:
        """Write what a run keeps of a log."""
        logs = importlib.import_module("inspect_ai.log")
        samples = logs.read_eval_log_samples(
            log.location, all_samples_required=False, resolve_attachments=True
        )
        lines = [f"{sample.model_dump_json(include=_SAMPLE)}\n" for sample in samples]
        results = self.folder / "results"
        write_whole(results / f"{number}.jsonl", "".join(lines))
        header = log.model_dump_json(include={"eval", "plan", "results", "location"})
        facts = {
            "name": name,
            "package": _package(log.eval.task_registry_name),
            "file_digest": _file_digest(log.eval.task_file),
        }
        write_whole(results / f"{number}.json", f'{json.dumps(facts)[:-1]}, "log": {header}}}')


def report_progress(runner: Runner) -> None:
    """Tell the caller how far Inspect is, and give up where no request can succeed."""
    hooks = importlib.import_module("inspect_ai.hooks")

    class Progress(hooks.Hooks):  # type: ignore[misc,name-defined]
        """Inspect calls these while it works."""

        def __init__(self) -> None:
            self.done = 0
            self.total: int | None = None

        async def on_task_start(self, data: Any) -> None:
            """A data set was loaded."""
            ids = data.spec.dataset.sample_ids
            self.done = 0
            self.total = len(ids) * (data.spec.config.epochs or 1) if ids else None
            runner.reports.progress(runner.task, 0, self.total)

        async def on_before_model_generate(self, data: Any) -> None:
            """A model is asked: ours, or one that grades."""
            is_ours = "enginehouse/" in data.model_name
            if is_ours and data.tools and not runner.request["has_tools"]:
                give_up(tools_failure(runner.task, None))

        async def on_sample_end(self, data: Any) -> None:
            """A sample is scored, or has failed."""
            error = data.sample.error
            hopeless = error and hopeless_failure(runner.task, error.message)
            if hopeless:
                give_up(hopeless)
            self.done += 1
            runner.reports.progress(runner.task, self.done, self.total)

    def give_up(failure: Failure) -> None:
        # Inspect only logs what a hook raises, and would send every other request, too.
        runner.reports.failure(failure)
        sys.stdout.flush()
        os._exit(1)

    hooks.hooks(name="enginehouse", description="Progress")(Progress)


def _require_arguments(name: str, arguments: dict[str, Any], function: Any) -> None:
    """Inspect itself only warns of arguments that a task does not have."""
    parameters = inspect.signature(function).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return
    unknown = [argument for argument in arguments if argument not in parameters]
    if unknown:
        raise Failure(
            f"the task {name} has no argument {', '.join(unknown)}",
            kind="unknown_argument",
            fix=f"its arguments: {', '.join(parameters) or 'none'}",
        )


def _require_sandbox(name: str, task: Any) -> None:
    specifications = [task.sandbox, *(sample.sandbox for sample in task.dataset)]
    needs_docker = any(getattr(one, "type", one) == "docker" for one in specifications)
    if needs_docker and shutil.which("docker") is None:
        raise sandbox_failure(name, "there is no program called docker")


def _package(task: str | None) -> str | None:
    """The package that a task comes from, with its version, as "inspect_evals 0.26.0"."""
    package, separator, _ = (task or "").partition("/")
    if not separator:
        return None
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


def _file_digest(file: str | None) -> str | None:
    """The SHA-256 of a task's file: a user edits it without a new version."""
    if file is None or not Path(file).is_file():
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _go_offline() -> None:
    """Take data sets from the cache at once, instead of after minutes, if there is no hub."""
    if "HF_HUB_OFFLINE" in os.environ or {"https_proxy", "HTTPS_PROXY"} & os.environ.keys():
        return
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_PROBE).close()
    except OSError as error:
        print(f"{address.hostname} cannot be reached ({error}): offline", flush=True)
        os.environ["HF_HUB_OFFLINE"] = "1"


def _seed(seed: int) -> None:
    """Give unseeded shuffles the same order in a second run, so that it asks the same items."""
    random.seed(seed)
    importlib.import_module("numpy").random.seed(seed)  # Hugging Face's


def main(request: dict[str, Any], reports: Reports) -> None:
    """Load all tasks before any is asked, then run one after another."""
    _go_offline()
    runner = Runner(request, reports)
    report_progress(runner)
    _seed(request["seed"] or 0)
    tasks = [runner.load(task["name"], task["spec"]) for task in request["tasks"]]
    for number, (task, loaded) in enumerate(zip(request["tasks"], tasks, strict=True)):
        runner.evaluate(number, task["name"], loaded)


if __name__ == "__main__":
    run(main)

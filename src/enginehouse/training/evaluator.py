"""Evaluates a model during its training, without a trace in the training."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.commands.configuration import EvaluationConfig
from enginehouse.commands.evaluate import begin_run, evaluate_on, run_evaluation
from enginehouse.core.errors import (
    ConfigurationError,
    EnginehouseError,
    StoreError,
    UnsupportedError,
)
from enginehouse.deployment.configuration import merged, parse
from enginehouse.deployment.opening import open_deployment
from enginehouse.deployment.preparation import with_api_key
from enginehouse.engines.base import ServedEngine
from enginehouse.engines.registry import load_engine
from enginehouse.results.summary import Report
from enginehouse.runtime.blocking import run_blocking
from enginehouse.runtime.context import Context, Notify
from enginehouse.runtime.interrupts import Interrupts, interrupts_deferred
from enginehouse.store.layout import Layout
from enginehouse.store.runs import list_runs
from enginehouse.tasks.registry import load_task
from enginehouse.training.device_memory import Vacated, vacated
from enginehouse.training.random_state import random_state_kept
from enginehouse.training.records import (
    Evaluation,
    append_evaluation,
    in_words,
    problems_of,
    scores_of,
)
from enginehouse.training.saving import is_adapted, save_adapter, save_checkpoint

_log = logging.getLogger(__name__)


class CheckpointEvaluator:
    """Evaluates the model of a training loop on `tasks`, as `enginehouse eval` would.

    `settings` holds the other fields of EvaluationConfig (limit=200, server={…}, …). Without `url`,
    each evaluation starts a server for the saved model and stops it again. With `url`, a running
    server loads the adapter of a PEFT model, or the weights of any other, for the evaluation; it
    must see our cache, or `folder`, under the same path.

    `folder` holds the journal (evaluations.jsonl, see `read_evaluations`) and the saved models
    (step-00000100, …) while they are needed, or with `keep_checkpoints`. One process only.
    Raises ConfigurationError for settings and tasks that cannot work, before any training.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        folder: Path | str,
        keep_checkpoints: bool = False,
        notify: Notify = _log.info,
        **settings: Any,
    ) -> None:
        self.folder = Path(folder).absolute()
        self._keep = keep_checkpoints
        self._notify = notify
        self._layout = Layout.from_environment()
        self._config = _configuration(tasks, settings)

    def evaluate(
        self,
        step: int,
        *,
        model: Any,
        tokenizer: Any,
        optimizer: Any = None,
        also: Iterable[Any] = (),
    ) -> Evaluation:
        """Evaluate the model as it is now; blocks until the loop can continue.

        The transformers or PEFT model is saved. What it, the optimizer and the further modules and
        optimizers in `also` hold on GPUs is moved to the host while our own server needs the room.
        When this returns or raises, parameters, gradients, optimizer state and random-number state
        are what they were, to the bit, and nothing that was started is left running.

        A failed evaluation does not raise: it is the result's `error`. Raises only torch's error if
        the trainer's state no longer fits its GPU (the saved model is then kept), and, at the very
        end, an interrupt that arrived during the evaluation.
        """
        attempt = _Attempt(int(step), self._config, folder=self.folder, layout=self._layout)
        holders = [holder for holder in (model, optimizer, *also) if holder is not None]
        keep = True  # the checkpoint is all that is left if the state cannot return to the GPU
        with interrupts_deferred() as interrupts:
            try:
                with random_state_kept(), ExitStack() as away:
                    attempt.carry_out(
                        _Trainer(model, tokenizer, holders, away), interrupts, self._notify
                    )
                keep = self._keep
            finally:
                evaluation = attempt.end(keep=keep)
                self._record(evaluation)
        return evaluation

    def _record(self, evaluation: Evaluation) -> None:
        if evaluation.error:
            _log.warning(in_words(evaluation))
        try:
            append_evaluation(self.folder, evaluation)
        except StoreError as error:
            _log.warning("step %d is not in the journal: %s", evaluation.step, error)
        try:
            self._notify(in_words(evaluation))
        except Exception:  # noqa: BLE001 - the training must continue
            _log.exception("step %d could not be reported", evaluation.step)


def _configuration(tasks: Sequence[str], settings: Mapping[str, Any]) -> EvaluationConfig:
    """Checked as far as possible before there is a checkpoint."""
    values = {"tasks": list(tasks), **settings}
    if values.get("url") is None:
        if given := [name for name in ("model", "path") if values.get(name) is not None]:
            raise ConfigurationError(
                f"CheckpointEvaluator() takes no {given[0]}",
                why="it evaluates the model of the training loop",
                fix="leave it out; with a url, model names what that server serves",
            )
        values["model"] = "step"  # stands for every checkpoint
    config = parse(EvaluationConfig, merged({}, values), origin="CheckpointEvaluator()")
    for task in config.settings.tasks:
        load_task(task.name)
    engine = load_engine(config.plan.engine)
    if not isinstance(engine, ServedEngine) or engine.model_format != "checkpoint":
        raise ConfigurationError(
            f"{engine.name} cannot serve checkpoints as trainers save them",
            fix="choose an engine that needs a checkpoint: see `enginehouse engines`",
        )
    if config.plan.addresses is not None:
        raise ConfigurationError(
            "CheckpointEvaluator() does not look for announced servers",
            why="each checkpoint replaces a server's weights, and those are not its own to replace",
            fix="give the url of one server, or leave addresses out",
        )
    if config.plan.url is None:
        with_api_key(config.plan.server)
    return config


@dataclass(frozen=True)
class _Trainer:
    """What a loop passes; what `away` holds moves back when it is closed."""

    model: Any
    tokenizer: Any
    holders: list[Any]
    away: ExitStack


class _Attempt:
    """One evaluation, from the model in memory to a result."""

    def __init__(
        self, step: int, config: EvaluationConfig, *, folder: Path, layout: Layout
    ) -> None:
        self._begun = time.monotonic()
        self._config = config
        self._layout = layout
        self._checkpoint = folder / f"step-{step:08d}"
        self._report: Report | None = None
        self._is_served = False
        self._result = Evaluation(
            step=step, started=datetime.now(UTC), seconds=0.0, error="it was interrupted"
        )

    def carry_out(self, trainer: _Trainer, interrupts: Interrupts, notify: Notify) -> None:
        """Save, vacate, evaluate. Errors are in the result."""
        try:
            self._evaluate(trainer, interrupts, notify)
        except asyncio.CancelledError as error:
            self._note(run=self._run(), error="; ".join(["it was interrupted", *_notes(error)]))
        except Exception as error:  # noqa: BLE001 - the training must continue
            message = str(error)
            if not isinstance(error, EnginehouseError):
                message = f"{type(error).__name__}: {message}"
            self._note(run=self._run(), error="; ".join([message, *_notes(error)]))
        else:
            self._note(error=None)
        if (report := self._report) is not None:
            problems = [p for p in (problems_of(report), self._result.error) if p]
            self._note(
                run=report.folder, scores=scores_of(report), error="; ".join(problems) or None
            )

    def _evaluate(self, trainer: _Trainer, interrupts: Interrupts, notify: Notify) -> None:
        _require_one_process()
        adapted = is_adapted(trainer.model) and self._config.plan.url is not None
        if adapted:
            save_adapter(trainer.model, folder=self._checkpoint)
        else:
            save_checkpoint(trainer.model, tokenizer=trainer.tokenizer, folder=self._checkpoint)
        if self._config.plan.url is None:
            vacant = trainer.away.enter_context(vacated(trainer.holders))
            self._note(moved_bytes=vacant.moved_bytes, freed_bytes=vacant.freed_bytes)
            notify(_freed(vacant))

        context, plan = Context(layout=self._layout, notify=notify), self._config.plan
        if plan.url is None:
            plan = plan.model_copy(update={"model": str(self._checkpoint)})
        elif adapted:
            plan = plan.model_copy(update={"adapter": self._checkpoint})
        config = self._config.model_copy(update={"plan": plan})

        async def work() -> None:
            if plan.url is None or adapted:
                self._report = await run_evaluation(config, context)
                return
            concurrency = config.settings.most_in_flight
            async with open_deployment(plan, context, concurrency=concurrency) as deployment:
                try:
                    async with deployment.target(self._checkpoint) as target:
                        run = await begin_run(config, context)
                        self._report = await evaluate_on(target, run, context)
                finally:
                    self._is_served = deployment.left_with is not None

        run_blocking(work, interrupts=interrupts, name="enginehouse-evaluation")

    def end(self, *, keep: bool) -> Evaluation:
        """Clean up, and return the result. A checkpoint that a server still has is kept for it."""
        keep = keep or self._is_served
        if not keep:
            shutil.rmtree(self._checkpoint, ignore_errors=True)
        kept = str(self._checkpoint) if keep and self._checkpoint.exists() else None
        self._note(checkpoint=kept, seconds=round(time.monotonic() - self._begun, 3))
        return self._result

    def _note(self, **changes: Any) -> None:
        self._result = msgspec.structs.replace(self._result, **changes)

    def _run(self) -> str | None:
        """The run that did not finish, so that it can be inspected."""
        name = self._checkpoint.name
        with suppress(StoreError):
            for info in list_runs(self._layout):
                if info.created >= self._result.started and name in info.model:
                    return str(self._layout.runs / info.id)
        return None


def _require_one_process() -> None:
    from torch import distributed

    if (
        distributed.is_available()
        and distributed.is_initialized()
        and (number := distributed.get_world_size()) > 1
    ):
        raise UnsupportedError(
            f"this training has {number} processes; it can be evaluated in place with one only",
            why="each of them holds GPU memory, and perhaps only a part of the model",
            fix="save checkpoints, and evaluate them with `enginehouse watch`",
        )


def _freed(vacant: Vacated) -> str:
    if not vacant.moved_bytes:
        return "the trainer has nothing on a GPU to move"
    freed = f"; {vacant.freed_bytes / 1e9:.2f} GB freed" if vacant.freed_bytes is not None else ""
    return f"moved {vacant.moved_bytes / 1e9:.2f} GB of the trainer to the host{freed}"


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])

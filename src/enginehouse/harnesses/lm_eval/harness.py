"""EleutherAI's lm-evaluation-harness, as a Harness."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import Capability
from enginehouse.core.strict_model import explain
from enginehouse.harnesses.base import (
    HarnessEndpoint,
    HarnessResult,
    HarnessSettings,
    HarnessTask,
    OnHarnessProgress,
)
from enginehouse.harnesses.lm_eval.arguments import LmEvalArguments
from enginehouse.harnesses.lm_eval.installation import INSTALLATION
from enginehouse.harnesses.lm_eval.results import read_results
from enginehouse.harnesses.program import run_program
from enginehouse.harnesses.task_lists import read_tasks
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.programs import PAYLOADS
from enginehouse.runtime.context import Context

REQUEST_SEED = 1234  # lm-eval's own
# The gateway has time limits of its own, and waits longer than that while an engine is restarted.
REQUEST_TIMEOUT = 24 * 3600.0
RETRIES = 2
MAX_LENGTH = 2048  # lm-eval's own, where the model's is not known


class LmEval:
    """See Harness."""

    name = "lm-eval"
    installation = INSTALLATION

    def check(self, settings: HarnessSettings) -> None:
        """See Harness."""
        _arguments(settings)
        _folder(settings.include_path)

    async def list_tasks(
        self, environment: EngineEnvironment, *, include_path: Path | None, context: Context
    ) -> Sequence[HarnessTask]:
        """See Harness."""
        return await read_tasks(
            PAYLOADS / "list_lm_eval.py",
            environment,
            include_path=_folder(include_path),
            context=context,
            more={"places": str(_places(environment, context))},
        )

    async def run(
        self,
        tasks: Sequence[str],
        *,
        endpoint: HarnessEndpoint,
        settings: HarnessSettings,
        environment: EngineEnvironment,
        folder: Path,
        context: Context,
        progress: OnHarnessProgress,
    ) -> Sequence[HarnessResult]:
        """See Harness. The harness's own results stay in the folder `results`."""
        arguments = _arguments(settings)
        results = folder / "results"
        await asyncio.to_thread(shutil.rmtree, results, ignore_errors=True)
        request = _request(
            tasks, endpoint=endpoint, settings=settings, arguments=arguments, results=results
        )
        request["places"] = str(_places(environment, context))
        if endpoint.max_model_len is None and request["tokenizer"] is not None:
            context.notify(
                f"{', '.join(tasks)}: the server does not say how long a prompt may be, so lm-eval "
                f"cuts off the beginning of those with more than {MAX_LENGTH:,} tokens"
            )
        await run_program(
            PAYLOADS / "run_lm_eval.py",
            request,
            environment=environment,
            folder=folder,
            log=folder / "lm-eval.log",
            variables={
                "OPENAI_API_KEY": endpoint.api_key,
                **({"HF_ALLOW_CODE_EVAL": "1"} if arguments.confirm_run_unsafe_code else {}),
            },
            progress=progress,
        )
        files = [results / f"{number}.json" for number in range(len(tasks))]
        return await asyncio.to_thread(read_results, files, version=environment.version)


def _arguments(settings: HarnessSettings) -> LmEvalArguments:
    if settings.samples not in {None, 1}:
        raise ConfigurationError(
            f"lm-eval asks each item once, not {settings.samples} times",
            why="how often it asks is part of a task of lm-eval (repeats)",
            fix="leave out samples, or write a task of your own with repeats",
        )
    try:
        return LmEvalArguments.model_validate(settings.arguments)
    except ValidationError as error:
        raise ConfigurationError(
            "the arguments for lm-eval are wrong", why="; ".join(explain(error, LmEvalArguments))
        ) from error


def _request(
    tasks: Sequence[str],
    *,
    endpoint: HarnessEndpoint,
    settings: HarnessSettings,
    arguments: LmEvalArguments,
    results: Path,
) -> dict[str, Any]:
    """What payloads/run_lm_eval.py reads."""
    include_path = _folder(settings.include_path)
    tokenizer = arguments.tokenizer or (str(endpoint.tokenizer) if endpoint.tokenizer else None)
    timeout, retries = settings.request_timeout, settings.max_retries
    return {
        "tasks": list(tasks),
        "results": str(results),
        "url": endpoint.url,
        "model": endpoint.model,
        "tokenizer": tokenizer,
        "prompt_logprobs": Capability.PROMPT_LOGPROBS in endpoint.capabilities.supports,
        "concurrency": endpoint.concurrency,
        "max_length": endpoint.max_model_len or MAX_LENGTH,
        "timeout": REQUEST_TIMEOUT if timeout is None else timeout,
        "max_retries": RETRIES if retries is None else retries,
        "chat": endpoint.chat and arguments.apply_chat_template is not False,
        "template_choices": endpoint.chat and arguments.apply_chat_template is True,
        "fewshot_as_multiturn": arguments.fewshot_as_multiturn,
        "include_path": str(include_path) if include_path else None,
        "limit": settings.limit,
        "few_shot": settings.few_shot,
        "system": settings.system,
        "seed": settings.seed,
        "request_seed": REQUEST_SEED if settings.seed is None else settings.seed,
        "gen_kwargs": _generation(settings, arguments),
        "batch_size": arguments.batch_size,
        "confirm_run_unsafe_code": arguments.confirm_run_unsafe_code,
        "metadata": {"tokenizer": tokenizer, **arguments.metadata},
    }


def _generation(settings: HarnessSettings, arguments: LmEvalArguments) -> dict[str, Any] | None:
    """What replaces the tasks' own way of generating; None if nothing does."""
    fields: dict[str, Any] = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "max_gen_toks": settings.max_tokens,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    if settings.temperature:
        given["do_sample"] = True
    return {**given, **arguments.gen_kwargs} or None


def _places(environment: EngineEnvironment, context: Context) -> Path:
    """Where the folders of its tasks are kept: see payloads/lm_eval_index.py."""
    name = environment.key or f"{environment.engine}-{environment.version}"
    return context.layout.harness_tasks / f"{name}-places.json"


def _folder(include_path: Path | None) -> Path | None:
    if include_path is None:
        return None
    folder = include_path.expanduser().absolute()
    if not folder.is_dir():
        raise ConfigurationError(
            f"there is no folder {folder}", fix="--include-path names a folder with tasks"
        )
    return folder

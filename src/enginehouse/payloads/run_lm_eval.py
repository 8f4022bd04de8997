"""Runs tasks of lm-evaluation-harness, in its environment. See harnesses/lm_eval/harness.py.

The harness is used as its own command uses it: TaskManager, simple_evaluate, and its model classes
local-chat-completions and local-completions. What is added here: each request goes to the one that
suits it, so that a group may mix written answers with log-likelihoods; requests are counted, and so
is what was cut off; and what goes wrong is put into words.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

from harness_reports import Failure, Reports, run, write_whole
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from lm_eval_index import make_manager

WRITTEN = "generate_until"
# Words by which the exceptions of many libraries say that a host cannot be reached.
_UNREACHABLE = (
    *("ConnectionError", "ConnectError", "ConnectTimeout", "OfflineModeIsEnabled"),
    *("LocalEntryNotFoundError", "MaxRetryError", "ReadTimeout", "NameResolutionError"),
)


class Progress:
    """Counts requests, and says how many samples that is."""

    def __init__(self, task: str, reports: Reports) -> None:
        self._task, self._reports = task, reports
        self._samples = self._requests = self._done = 0

    def plan(self, task: Task) -> None:
        """Count what a task is going to ask."""
        self._samples += len({instance.doc_id for instance in task.instances})
        self._requests += sum(instance.repeats for instance in task.instances)
        self._report()

    def count(self, requests: int) -> None:
        """Count answers."""
        self._done += requests
        self._report()

    def _report(self) -> None:
        share = min(1.0, self._done / self._requests) if self._requests else 0.0
        self._reports.progress(self._task, math.floor(share * self._samples), self._samples)


class Endpoint(LM):
    """The served model: chat completions for messages, completions for everything else.

    `truncated` are the documents, by task and number, whose answers ended at the token limit;
    `shortened` are those of whose prompts lm-eval cut off the beginning.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        super().__init__()
        self._request = request
        self._chat: Any = None
        self._completions: Any = None
        self._asked: list[Any] = []
        self._failed: dict[Exception, Sequence[Any]] = {}  # messages of requests
        self.progress: Progress | None = None
        self.truncated: set[tuple[str, int]] = set()
        self.shortened: set[tuple[str, int]] = set()

    @property
    def chat(self) -> Any:
        """Lm-eval's model for messages."""
        if self._chat is None:
            self._chat = self._make(LocalChatCompletion, "/v1/chat/completions")
        return self._chat

    @property
    def completions(self) -> Any:
        """Lm-eval's model for text, with the served checkpoint's tokenizer."""
        if self._completions is None:
            tokenizer = self._request["tokenizer"]
            more: dict[str, Any] = {"tokenizer_backend": None}
            if tokenizer is not None:
                more = {"tokenizer_backend": "huggingface", "tokenizer": tokenizer}
            self._completions = self._make(
                LocalCompletionsAPI,
                "/v1/completions",
                batch_size=self._request["batch_size"],
                **more,
            )
            if tokenizer is not None:
                self._completions.add_bos_token = self._begins_with_bos()
        return self._completions

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002, FBT001, FBT002
        """Each by the model that suits it, in order."""
        messages = [not isinstance(request.args[0], str) for request in requests]
        answers: dict[int, str] = {}
        for wanted, model in ((True, "chat"), (False, "completions")):
            places = [at for at, is_chat in enumerate(messages) if is_chat is wanted]
            if places:
                self._asked = [requests[at] for at in places]
                asked_model = getattr(self, model)
                self.shortened |= set(_shortened(asked_model, self._asked))
                written = asked_model.generate_until(self._asked, disable_tqdm=True)
                answers |= dict(zip(places, written, strict=True))
        self.truncated |= {
            _document(requests[at]) for at, text in answers.items() if isinstance(text, Truncated)
        }
        return [str(answers[at]) for at in range(len(requests))]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:  # noqa: ARG002, FBT001, FBT002
        """Through completions that echo the prompt."""
        self.require_logprobs(None)
        self._asked = requests
        model = self.completions
        scores = model.loglikelihood(requests, disable_tqdm=True)
        self.shortened |= {_document(r) for r in requests if r.args in model.shortened}
        return scores

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002, FBT001, FBT002
        """All documents at once, which lm-eval's models ask one after another."""
        self.require_logprobs(None)
        self._asked = requests
        model = self.completions
        # Windows begin with the prefix token anyway: a second one would be scored.
        model.add_bos_token, begins_with_bos = False, model.add_bos_token
        try:
            documents = [_windows(model, request.args[0]) for request in requests]
        finally:
            model.add_bos_token = begins_with_bos
        windows = [window for document in documents for window in document]
        scores = iter(model._loglikelihood_tokens(windows) if windows else ())  # noqa: SLF001
        return [sum(next(scores)[0] for _ in document) for document in documents]

    def require_logprobs(self, task: str | None) -> None:
        """Raise Failure if this endpoint cannot be asked for log-likelihoods."""
        asks = f"the task {task} needs" if task else "this task needs"
        if not self._request["prompt_logprobs"]:
            raise Failure(
                f"{asks} log-probabilities of the prompt, which this engine does not return",
                kind="needs_logprobs",
                fix="serve the model with vllm, or take a task with written answers",
            )
        if self._request["tokenizer"] is None:
            raise Failure(
                f"{asks} the model's tokenizer, and the model is not on this machine",
                kind="needs_tokenizer",
                fix="name the folder or the hub handle of the model in the argument tokenizer",
            )

    @contextmanager
    def noting_failure(self, request: dict[str, Any]) -> Iterator[None]:
        """In the block a request is sent; `failed_document` knows it if that fails."""
        try:
            yield
        except Exception as error:
            self._failed[error] = request.get("messages", ())
            raise

    def failed_document(self, error: Exception) -> tuple[str, int] | None:
        """The task and number of the document whose request failed; None if that is not clear."""
        messages = self._failed.get(error, ())
        if len(messages) != 1:  # several prompts in one request
            return None
        (message,) = messages
        if isinstance(message, list):
            text = self.completions.tokenizer.decode(message, skip_special_tokens=True).strip()
            alike = (r for r in self._asked if text in "".join(a for a in r.args if a == str(a)))
        else:
            alike = (r for r in self._asked if r.args[0] == message)
        return next(map(_document, alike), None)

    @property
    def tokenizer_name(self) -> str:
        """See LM; only caches of requests use it, and there are none."""
        return ""

    def _make(self, kind: type[Any], path: str, **more: Any) -> Any:
        request = self._request
        return _counting(kind, self)(
            model=request["model"],
            base_url=request["url"] + path,
            num_concurrent=request["concurrency"],
            max_retries=request["max_retries"] + 1,
            timeout=request["timeout"],
            seed=request["request_seed"],
            max_length=request["max_length"],
            **more,
        )

    def _begins_with_bos(self) -> bool:
        """Whether the engine's own tokenization of a text begins with the BOS token."""
        tokenizer = self._completions.tokenizer
        if tokenizer.bos_token_id is None:
            return False
        if self._request["template_choices"]:
            turn = [{"role": "user", "content": "a"}]
            text = tokenizer.apply_chat_template(turn, tokenize=False)
            if text.startswith(tokenizer.bos_token):
                return False
        return bool(tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id])


class Truncated(str):
    """An answer that ended at the token limit."""

    __slots__ = ()


def _document(request: Any) -> tuple[str, int]:
    return request.task_name, request.doc_id


def _shortened(model: Any, requests: list[Any]) -> Iterator[tuple[str, int]]:
    """The documents whose prompts are too long beside the answer; lm-eval cuts them silently."""
    if model.tokenizer is None:
        return  # then the prompt is sent as it is
    for request in requests:
        text, options = request.args
        room = model.max_length - options.get("max_gen_toks", model._max_gen_toks)  # noqa: SLF001
        if len(text.encode()) >= room and len(model.tok_encode(text)) > room:
            yield _document(request)


def _windows(model: Any, text: str) -> list[tuple[None, list[int], list[int]]]:
    """A text's tokens in pieces that fit into the model, each with what comes before it."""
    windows = get_rolling_token_windows(
        token_list=model.tok_encode(text),
        prefix_token=model.prefix_token_id,
        max_seq_len=model.max_length - 1,
        context_len=1,
    )
    return [(None, *make_disjoint_window(window)) for window in windows]


def _too_long(batches: list[Any], limit: int) -> Iterator[tuple[str, str]]:
    """The contexts, with their continuations, of which lm-eval cuts off the beginning."""
    for batch in batches:
        for asked, context, continuation in batch:
            if len(context) + len(continuation) > limit:
                yield asked


def _with_ends(answers: list[Any], outputs: Any) -> list[Any]:
    """The answers, with those that ended at the token limit as Truncated."""
    replies = outputs if isinstance(outputs, list) else [outputs]
    ends: list[str | None] = []
    for reply in replies:
        choices = sorted(reply.get("choices") or (), key=lambda choice: choice.get("index", 0))
        ends += [choice.get("finish_reason") for choice in choices]
    if len(ends) != len(answers):  # some could not be read
        return answers
    return [
        Truncated(text or "") if end == "length" else text
        for text, end in zip(answers, ends, strict=True)
    ]


def _counting(kind: type[Any], endpoint: Endpoint) -> type[Any]:
    """One of lm-eval's models, which counts its answers and checks that the prompt was echoed."""

    class Counting(kind):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.shortened: set[tuple[str, str]] = set()  # contexts with their continuations

        async def amodel_call(self, *arguments: Any, **more: Any) -> Any:
            with endpoint.noting_failure(more):
                return await super().amodel_call(*arguments, **more)

        def model_call(self, *arguments: Any, **more: Any) -> Any:
            with endpoint.noting_failure(more):
                return super().model_call(*arguments, **more)

        def batch_loglikelihood_requests(self, chunks: Any) -> Any:
            batches = [list(chunk) for chunk in chunks]
            self.shortened |= set(_too_long(batches, self.max_length))
            return super().batch_loglikelihood_requests(batches)

        def parse_generations(self, outputs: Any, **more: Any) -> list[Any]:
            answers = super().parse_generations(outputs=outputs, **more)
            return self._counted(_with_ends(answers, outputs))

        def parse_logprobs(self, outputs: Any, tokens: Any, **more: Any) -> list[Any]:
            replies = outputs if isinstance(outputs, list) else [outputs]
            choices = [choice for reply in replies for choice in reply["choices"]]
            echoed = [(c.get("logprobs") or {}).get("token_logprobs") or () for c in choices]
            if max(map(len, echoed), default=0) < max(map(len, tokens)):
                raise Failure(
                    "the engine returned no log-probabilities of the prompt",
                    kind="needs_logprobs",
                    why="its /v1/completions does not know echo",
                    fix="serve the model with vllm, or take a task with written answers",
                )
            return self._counted(super().parse_logprobs(outputs=outputs, tokens=tokens, **more))

        def _counted(self, results: list[Any]) -> list[Any]:
            if endpoint.progress is not None:
                endpoint.progress.count(len(results))
            return results

    return Counting


class LastWarning(logging.Handler):
    """Remembers what lm-eval last warned of, which is what the server said."""

    text: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """See Handler."""
        if record.levelno == logging.WARNING:
            self.text = record.getMessage()


def main(request: dict[str, Any], reports: Reports) -> None:
    """Load every task first, so that nothing is asked if one cannot be; then run them in turn."""
    manager = make_manager(request)
    endpoint = Endpoint(request)
    _choose_templates(request, endpoint)
    loaded = [load(manager, name, request=request, endpoint=endpoint) for name in request["tasks"]]
    for number, (name, own) in enumerate(zip(request["tasks"], loaded, strict=True)):
        endpoint.progress = Progress(name, reports)
        results = evaluate(name, own, manager=manager, endpoint=endpoint, request=request)
        for task, rows in results["samples"].items():
            for row in rows:
                row["truncated"] = (task, row["doc_id"]) in endpoint.truncated
                row["shortened"] = (task, row["doc_id"]) in endpoint.shortened
        text = json.dumps(_plain(results), ensure_ascii=False)
        write_whole(Path(request["results"], f"{number}.json"), text)


def load(
    manager: TaskManager, name: str, *, request: dict[str, Any], endpoint: Endpoint
) -> list[Any]:
    """What `simple_evaluate` is given for a name; loads the data sets. Raises Failure."""
    if not hasattr(manager, "load"):  # before 0.4.10; it is loaded in simple_evaluate
        return [name]
    try:
        found = manager.load([name])
    except Exception as error:
        raise _explained(error, name) from error
    leaves = found["tasks"].values()
    for task in leaves:
        if getattr(task, "UNSAFE_CODE", False) and not request["confirm_run_unsafe_code"]:
            raise _unsafe(task.config.task)
        if task.OUTPUT_TYPE not in {WRITTEN, None}:
            endpoint.require_logprobs(name)
    return [found["groups"][name]] if name in found.get("groups", {}) else list(leaves)


def evaluate(
    name: str,
    loaded: list[Any],
    *,
    manager: TaskManager,
    endpoint: Endpoint,
    request: dict[str, Any],
) -> Any:
    """One task, group or tag. Raises Failure."""
    warning = LastWarning()
    for logger in LOGGERS:
        logging.getLogger(logger).addHandler(warning)
    seeds = {} if request["seed"] is None else dict.fromkeys(SEEDS, request["seed"])
    options = {
        "task_manager": manager,
        "num_fewshot": request["few_shot"],
        "limit": request["limit"],
        "gen_kwargs": _generation(request["gen_kwargs"]),
        "system_instruction": request["system"],
        "log_samples": True,
        **seeds,
    }
    if _CONFIRM in _PARAMETERS:
        options[_CONFIRM] = request[_CONFIRM]
    try:
        return simple_evaluate(model=endpoint, tasks=loaded, **options)
    except Failure:
        raise
    except Exception as error:
        if type(error).__module__.partition(".")[0] in {"aiohttp", "requests"}:
            document = endpoint.failed_document(error)
            raise Failure(
                f"a request of {name} failed"
                if document is None
                else f"the request for item {document[1]} of {document[0]} failed",
                kind="request_failed",
                why=_words_of(warning.text) or f"{type(error).__name__}: {error}",
                fix="if the prompt is too long, resuming asks the same again: start a new run with "
                "a larger --max-model-len, fewer examples (few_shot) or a smaller max_tokens",
            ) from error
        raise _explained(error, name) from error
    finally:
        for logger in LOGGERS:
            logging.getLogger(logger).removeHandler(warning)


def _words_of(warning: str | None) -> str | None:
    """What the server said, without what lm-eval writes around it."""
    text = warning or ""
    try:
        words = json.loads(text[text.find("{") : text.rfind("}") + 1])["error"]["message"]
    except (ValueError, LookupError, TypeError):
        words = None
    return words if isinstance(words, str) else warning


def _generation(fields: dict[str, Any] | None) -> dict[str, Any] | str | None:
    """As this version takes it: before 0.4.9 as text, which has no lists. Raises Failure."""
    if fields is None or "dict" in str(_PARAMETERS["gen_kwargs"].annotation):
        return fields
    text = {name: str(value) for name, value in fields.items()}
    if unsuitable := [n for n in text if isinstance(fields[n], list) or {",", "="} & {*text[n]}]:
        raise Failure(
            f"this version of lm-eval cannot be given {', '.join(unsuitable)}",
            kind="unsupported_version",
            why="before 0.4.9 it takes gen_kwargs as text, in which commas separate them",
            fix="take a newer one (harness_version), or leave it out",
        )
    return ",".join(f"{name}={value}" for name, value in text.items())


_PARAMETERS = signature(simple_evaluate).parameters
_CONFIRM = "confirm_run_unsafe_code"  # from 0.4.8 on, as are the tasks that need it
LOGGERS = ("lm_eval", "lm-eval")  # before 0.4.8 the second
SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


def _choose_templates(request: dict[str, Any], endpoint: Endpoint) -> None:
    """Have each task's prompts made for what answers them, and counted.

    Lm-eval itself has one setting for all tasks of a run.
    """
    build = Task.build_all_requests

    def build_all_requests(self: Task, **options: Any) -> None:
        options |= {"apply_chat_template": False, "chat_template": None}
        options["fewshot_as_multiturn"] = False
        template = None
        if self.OUTPUT_TYPE == WRITTEN:
            template = endpoint.chat if request["chat"] else None
        elif self.OUTPUT_TYPE is not None:
            endpoint.require_logprobs(self.config.task)
            template = endpoint.completions if request["template_choices"] else None
        if template is not None:
            options |= {
                "apply_chat_template": True,
                "chat_template": template.apply_chat_template,
                "fewshot_as_multiturn": request["fewshot_as_multiturn"],
            }
        build(self, **options)
        if endpoint.progress is not None:
            endpoint.progress.plan(self)

    Task.build_all_requests = build_all_requests


def _explained(error: Exception, name: str) -> Exception:
    """A Failure in words, or the error itself if it is not one of the known kinds."""
    chain = list(_chain(error))
    names = [kind.__name__ for one in chain for kind in type(one).__mro__]
    text = f"{type(error).__name__}: {error}"
    if "GatedRepoError" in names or "gated dataset" in str(error):
        return Failure(
            f"the data set of {name} is gated",
            kind="gated_data",
            why=text,
            fix="ask for access on its page at the hub, and set HF_TOKEN",
        )
    if any(word in names for word in _UNREACHABLE) or "Couldn't reach" in str(error):
        return Failure(
            f"the data set of {name} could not be loaded: the hub is not reached from here",
            kind="data_unreachable",
            why=text,
            fix="check the network and the proxy; or fill the hub's cache (HF_HOME) elsewhere",
        )
    if "DatasetNotFoundError" in names:
        return Failure(f"the data set of {name} was not found", kind="data_not_found", why=text)
    if "ModuleNotFoundError" in names:
        missing = next(one for one in chain if isinstance(one, ModuleNotFoundError))
        return Failure(
            f"{name} needs the package {missing.name}, which is not in lm-eval's environment",
            kind="missing_package",
            why=text,
            fix="name a Python that has it in ENGINEHOUSE_LM_EVAL_PYTHON",
        )
    return error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _unsafe(task: str) -> Failure:
    return Failure(
        f"the task {task} runs code that the model writes, on this machine and in no sandbox",
        kind="unsafe_code",
        fix="allow it with the argument confirm_run_unsafe_code: true",
    )


def _plain(value: Any) -> Any:
    """As JSON has it: no number that is not finite, and anything unknown as text."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_plain(one) for one in value]
    if hasattr(value, "item") and not hasattr(value, "__len__"):  # a number of numpy
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int) else str(value)


if __name__ == "__main__":
    os.chdir(Path(sys.argv[sys.argv.index("--request") + 1]).parent)
    run(main)

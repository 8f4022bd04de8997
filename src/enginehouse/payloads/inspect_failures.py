"""What an exception of Inspect, its tasks or the hub means for the user."""

from __future__ import annotations

import re
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from harness_reports import Failure

_GATED = re.compile(r"gated (repo|dataset)|GatedRepoError|awaiting a review", re.IGNORECASE)
_NETWORK_ERRORS = {
    "ConnectError",
    "ConnectTimeout",
    "ConnectionError",
    "LocalEntryNotFoundError",
    "MaxRetryError",
    "NameResolutionError",
    "OfflineModeIsEnabled",
    "gaierror",
}
_NETWORK = re.compile(
    r"couldn't reach|offline mode|HF_HUB_OFFLINE|name or service not known"
    r"|temporary failure in name resolution|network is unreachable",
    re.IGNORECASE,
)
_PACKAGE = re.compile(r"No module named|please install|Install with|optional dependenc|uv sync")
_SANDBOX = re.compile(r"docker|sandbox", re.IGNORECASE)
_TOOLS = re.compile(r"--(enable-auto-tool-choice|tool-call-parser)")
_ONE_MESSAGE = "requires a single user message as input"
_MARKUP = re.compile(r"\[/?(bold|blue|italic|green|red|/)*\]")
_OWN_PYTHON = (
    "add it to a Python environment of your own that has inspect_ai, "
    "and name that in ENGINEHOUSE_INSPECT_PYTHON"
)


@contextmanager
def explained(task: str) -> Iterator[None]:
    """Turn whatever the block raises into a Failure; the traceback goes to the log."""
    try:
        yield
    except Failure:
        raise
    except Exception as error:
        traceback.print_exc()
        causes = _causes(error)
        message = "; ".join(dict.fromkeys(filter(None, map(_words, causes))))
        names = {type(cause).__name__ for cause in causes}
        raise failure_of(task, message or repr(error), names=names) from error


def failure_of(task: str, message: str, *, names: Collection[str] = ()) -> Failure:
    """The Failure for an error's words and the names of its exceptions' classes."""
    lines = (line.strip() for line in _MARKUP.sub("", message).splitlines())
    message = "; ".join(filter(None, lines)).removeprefix("ERROR: ")
    if _GATED.search(message) or "GatedRepoError" in names:
        return Failure(
            f"the data of {task} is gated",
            kind="gated_data",
            why=message,
            fix="accept its terms on the hub, and set HF_TOKEN to a token of that account",
        )
    if _NETWORK_ERRORS.intersection(names) or _NETWORK.search(message):
        return Failure(
            f"the data of {task} is neither here nor can it be downloaded",
            kind="data_unreachable",
            why=message,
            fix="run it once on a machine with a connection, with the same HF_HOME",
        )
    if hopeless := hopeless_failure(task, message):
        return hopeless
    if {"ImportError", "ModuleNotFoundError"}.intersection(names) or _PACKAGE.search(message):
        return Failure(
            f"{task} needs a package that is not installed with inspect",
            kind="needs_package",
            why=message,
            fix=_OWN_PYTHON,
        )
    if "PrerequisiteError" in names and _SANDBOX.search(message):
        return sandbox_failure(task, message)
    return Failure(f"{task} failed", kind="task_failed", why=message)


def sandbox_failure(task: str, why: str) -> Failure:
    """The task runs code in containers, which this machine does not have."""
    return Failure(
        f"{task} runs code in a sandbox that is not there",
        kind="needs_sandbox",
        why=why,
        fix="install Docker with its compose plug-in, and let this user talk to its daemon",
    )


def hopeless_failure(task: str, message: str) -> Failure | None:
    """What a sample's error says about all others of its task, too; None if nothing."""
    if _TOOLS.search(message):
        return tools_failure(task, message)
    if _ONE_MESSAGE in message:
        return Failure(
            f"{task} has conversations with the model, which has no chat template",
            kind="needs_chat",
            why=message,
            fix="evaluate a model that was trained to chat",
        )
    return None


def tools_failure(task: str, why: str | None) -> Failure:
    """The task offers tools to the model, which the engine does not pass on."""
    return Failure(
        f"{task} gives the model tools, which this engine does not support",
        kind="needs_tools",
        why=why,
        fix="serve the model with an engine that does, such as vLLM with a tool-call parser",
    )


def _causes(error: BaseException) -> list[BaseException]:
    """The error, and those that it came from."""
    causes: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in causes:
        causes.append(following)
        attempt = getattr(following, "last_attempt", None)  # of tenacity's RetryError
        inner = attempt.exception() if attempt is not None else None
        following = inner or following.__cause__ or following.__context__
    return causes


def _words(error: BaseException) -> str:
    name = type(error).__name__
    if name in {"RetryError", "ExceptionGroup"}:
        return ""
    message = str(getattr(error, "message", "") or error).strip()
    if name == "PrerequisiteError":
        return message
    return f"{name}: {message}" if message else name

"""From a task's name in a launch configuration to what runs: a native task, or another harness's.

The names and harnesses are those of nemo-evaluator-launcher 0.2.6.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.harnesses.names import HarnessTaskName, harness_task_name
from enginehouse.harnesses.registry import HARNESSES
from enginehouse.tasks.base import Task
from enginehouse.tasks.registry import TASKS, load_task

LM_EVAL: Final = "lm-eval"
INSPECT: Final = "inspect"

_LM_HARNESS: Final = "lm-evaluation-harness"
_HARNESSES: Final = {
    "aa-lcr": None,
    "bfcl": INSPECT,
    "bigcode-evaluation-harness": INSPECT,
    "codec": None,
    "garak": None,
    "genai-perf-eval": None,
    "helm": None,
    "hle": INSPECT,
    "ifbench": None,
    "livecodebench": None,
    "lm-eval": LM_EVAL,
    _LM_HARNESS: LM_EVAL,
    "mmath": None,
    "mtbench": None,
    "mteb": None,
    "nemo-skills": None,
    "profbench": None,
    "ruler": None,
    "safety-eval": None,
    "scicode": INSPECT,
    "simple-evals": INSPECT,
    "tau2-bench": INSPECT,
    "tooltalk": None,
    "vlmevalkit": None,
}
"""The launcher's harnesses, spelled with hyphens, and which other harness has their benchmarks."""

_NAMES_IN_INSPECT: Final = {
    "aime_2024": "aime2024",
    "aime_2025": "aime2025",
    "browsecomp": "browse_comp",
    "healthbench": "healthbench",
    "healthbench_consensus": "healthbench_consensus",
    "healthbench_hard": "healthbench_hard",
    "hle": "hle",
    "humaneval": "humaneval",
    "humaneval_instruct": "humaneval",
    "math_test_500": "math",
    "mbpp": "mbpp",
    "mbpp-chat": "mbpp",
    "scicode": "scicode",
    "simpleqa": "simpleqa",
    "tau2_bench_airline": "tau2_airline",
    "tau2_bench_retail": "tau2_retail",
    "tau2_bench_telecom": "tau2_telecom",
}
"""The launcher's names, in lower case, and those of the same benchmarks in inspect_evals 0.26."""
_INSPECT_EVALS: Final = "inspect_evals/"


@dataclass(frozen=True, kw_only=True)
class _Spelling:
    """A name of the launcher's for a native task, and how the task differs from the harness's."""

    task: str
    harness: str
    name: str
    difference: str


_SPELLINGS: Final = (
    _Spelling(
        task="ifeval",
        harness=_LM_HARNESS,
        name="ifeval",
        difference="the same prompts and checkers",
    ),
    _Spelling(
        task="gpqa_diamond",
        harness="simple-evals",
        name="gpqa_diamond",
        difference="the same protocol, in our own words",
    ),
    _Spelling(
        task="gsm8k",
        harness=_LM_HARNESS,
        name="gsm8k",
        difference="five examples and a text to complete there, four and a conversation here",
    ),
    _Spelling(
        task="gsm8k",
        harness=_LM_HARNESS,
        name="gsm8k_cot_instruct",
        difference="no examples there, four here",
    ),
    _Spelling(
        task="hellaswag",
        harness=_LM_HARNESS,
        name="hellaswag",
        difference="ten examples there, none here",
    ),
)


class ResolvedTask(msgspec.Struct, frozen=True, kw_only=True):
    """What a name stands for.

    `name` is what `enginehouse eval --task` takes. For a task that is not `native` it is
    lm-eval:NAME or inspect:NAME, and `harness` the one that runs it, or None where no harness that
    runs here has it; then the name is as it was written. `meaning` is one sentence: prompt and
    scorer, or why it does not run. `nearest` are native names.
    """

    written: str
    name: str
    native: bool
    meaning: str
    harness: str | None = None
    nearest: tuple[str, ...] = ()

    @property
    def renamed(self) -> bool:
        """Whether the task that runs has another name than the one that was written."""
        is_file = self.written.endswith((".yaml", ".yml"))
        return self.written != self.name and not is_file


def resolve_task(written: str, *, base: Path) -> ResolvedTask:
    """What a name in a launch configuration stands for; loads no data.

    A YAML file of the user's own is found from `base`, the configuration's folder. Raises
    ConfigurationError for one that is wrong, and for a harness that the launcher does not have.
    """
    if written.endswith((".yaml", ".yml")):
        path = (base / Path(written).expanduser()).absolute()
        task = load_task(str(path))
        return _native(written, str(path), task)
    if spelling := _spelling(written):
        return _native(written, spelling.task, load_task(spelling.task), spelling)
    if written in TASKS.names() or written.startswith("reasoning_gym/"):
        return _native(written, written, load_task(written))
    return _foreign(written, _foreign_name(written, base=base))


def require_runnable(tasks: Iterable[ResolvedTask]) -> None:
    """Raise ConfigurationError if a task is neither native nor of a harness that runs here."""
    without = [task for task in tasks if not task.native and task.harness is None]
    if not without:
        return
    near = [f"{task.written}: {', '.join(task.nearest)}" for task in without if task.nearest]
    fix = f"remove them, or use native tasks ({', '.join(TASKS.names())})"
    if near:
        fix += f"; nearest to {'; to '.join(near)}"
    raise ConfigurationError(
        f"no harness that runs here has these tasks: {', '.join(task.written for task in without)}",
        why=f"the harnesses are {', '.join(HARNESSES.names())}; nothing was started",
        fix=fix,
    )


def native_spellings(task: str) -> tuple[str, ...]:
    """The launcher's names for a native task, with their harnesses."""
    return tuple(f"{s.harness}.{s.name}" for s in _SPELLINGS if s.task == task)


def foreign_spellings() -> tuple[str, ...]:
    """The launcher's names for benchmarks that have another name in the harness that runs them."""
    return tuple(_NAMES_IN_INSPECT)


def _spelling(written: str) -> _Spelling | None:
    harness, _, name = written.rpartition(".")
    harness = _hyphenate(harness)
    if harness == "lm-eval":
        harness = _LM_HARNESS
    return next(
        (s for s in _SPELLINGS if s.name == name and harness in ("", s.harness)),
        None,
    )


def _hyphenate(harness: str) -> str:
    return harness.lower().replace("_", "-")


def _native(written: str, name: str, task: Task, spelling: _Spelling | None = None) -> ResolvedTask:
    info = task.info
    meaning = f"our own task {info.name}: {info.description or 'no description'}; "
    meaning += f"correct: {info.headline}"
    if spelling is not None:
        meaning += f" (against {spelling.harness}.{spelling.name}: {spelling.difference})"
    return ResolvedTask(written=written, name=name, native=True, meaning=meaning)


def _foreign_name(written: str, *, base: Path) -> HarnessTaskName | None:
    """The harness that runs a task, and its name there; None if none has it.

    A file of the user's own beside the configuration is named by its whole path.
    """
    if (named := harness_task_name(written)) is not None:
        file, at, task = named.task.partition("@")
        path = (base / Path(file).expanduser()).absolute()
        if not (file.endswith(".py") and path.is_file()):
            return named
        return HarnessTaskName(harness=named.harness, task=f"{path}{at}{task}")
    harness, dot, name = written.rpartition(".")
    in_inspect = _NAMES_IN_INSPECT.get(name.lower())
    if not dot and in_inspect is None:
        return HarnessTaskName(harness=LM_EVAL, task=name)
    if dot and _hyphenate(harness) not in _HARNESSES:
        raise ConfigurationError(
            f"the task {written!r} names an unknown harness: {harness!r}",
            fix=f"the harnesses are: {', '.join(_HARNESSES)}; native tasks need none: "
            + ", ".join(TASKS.names()),
        )
    runner = _HARNESSES[_hyphenate(harness)] if dot else INSPECT
    if runner is None:
        return None
    if runner == INSPECT:
        name = _INSPECT_EVALS + (in_inspect or name)
    return HarnessTaskName(harness=runner, task=name)


def _foreign(written: str, named: HarnessTaskName | None) -> ResolvedTask:
    if named is None:
        return ResolvedTask(
            written=written,
            name=written,
            native=False,
            meaning="a task that cannot be run; neither lm-eval nor inspect has it",
            nearest=_nearest(written),
        )
    if named.harness not in HARNESSES.names():
        raise UnknownNameError("harness", named.harness, HARNESSES.names())
    return ResolvedTask(
        written=written,
        name=f"{named.harness}:{named.task}",
        native=False,
        meaning=f"the task {named.task} of {named.harness}, which asks and scores it itself",
        harness=named.harness,
        nearest=_nearest(written),
    )


def _nearest(written: str) -> tuple[str, ...]:
    """Native names that are spelled alike, or begin with the same letters as the benchmark."""
    name = written.rpartition(".")[2].rpartition(":")[2].lower()
    names: Sequence[str] = TASKS.names()
    alike = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    family = [known for known in names if name.startswith(known.partition("/")[0])]
    return tuple(dict.fromkeys([*family, *alike]))

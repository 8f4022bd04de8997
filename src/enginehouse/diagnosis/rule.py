"""A rule: what a text in a log means, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from enginehouse.diagnosis.kinds import Diagnosis, FailureKind

LESS_GPU_MEMORY = (
    "while loading, use more GPUs (--tensor-parallel-size) or a smaller or quantized model; while "
    "serving, a smaller --max-num-seqs, --max-num-batched-tokens or --gpu-memory-utilization, "
    "which leaves more outside the KV cache; `nvidia-smi` shows what else uses the GPU"
)
_LEFT_BEHIND = re.compile(r" \(\)|:? +(?=[;:,.)]|$)|: *$")


@dataclass
class Surroundings:
    """Where a log was written, as far as it says, and advice that depends on the engine.

    `packages` is its environment's site-packages folder. `rebuild`, `without_gpu` and
    `less_gpu_memory` are parts of a next step.
    """

    engine: str = "the engine"
    on_cpu: bool = False
    packages: Path | None = None
    rebuild: str = "`enginehouse envs remove KEY`, `enginehouse install ENGINE`"
    without_gpu: str = "an engine that computes on CPUs (see `enginehouse engines`)"
    less_gpu_memory: str = LESS_GPU_MEMORY


def groups(match: re.Match[str], around: Surroundings) -> Mapping[str, str]:  # noqa: ARG001
    """The named groups of a match; "" for one that took no part.

    Alternatives of a pattern may have groups for the same thing: `name`, `name__2`, and so on.
    """
    said: dict[str, str] = {}
    for numbered, value in match.groupdict().items():
        name = numbered.partition("__")[0]
        said[name] = said.get(name) or value or ""
    return said


# What fills a rule's placeholders, from its match and from the log around it.
Details = Callable[[re.Match[str], Surroundings], Mapping[str, str]]


@dataclass(frozen=True)
class Rule:
    """One known failure. `pattern` is searched for in an error's text.

    `cause` and `fix` name, in braces, groups of the pattern or what `details` makes of them;
    `{engine}`, `{rebuild}` and `{without_gpu}` are always there. `vague`: the text is a symptom;
    a definite cause elsewhere explains more. `spoken`: also believed where it is not an error
    but a bare line or a warning, as native code and compilers write them. `late`: it may end a
    server that answers requests, so it counts even where a request's own failure would not. A
    pattern must be bounded: no `.*` between two others.
    """

    kind: FailureKind
    pattern: str
    cause: str
    fix: str
    details: Details = groups
    vague: bool = False
    spoken: bool = False
    late: bool = False

    def diagnose(self, text: str, *, around: Surroundings) -> Diagnosis | None:
        """What this rule says of a text of one or more lines; None if it does not know it."""
        match = re.search(self.pattern, text)
        if match is None:
            return None
        details = {
            "engine": around.engine,
            "rebuild": around.rebuild,
            "without_gpu": around.without_gpu,
            **self.details(match, around),
        }
        return Diagnosis(
            kind=self.kind,
            evidence=_line_around(text, match.start()),
            cause=_tidy(self.cause.format_map(details)),
            fix=_tidy(self.fix.format_map(details)),
        )


def recognise(line: str, *, rules: Iterable[Rule], around: Surroundings) -> Diagnosis | None:
    """What the first rule that knows a text says of it; None if none does."""
    for rule in rules:
        if (diagnosis := rule.diagnose(line, around=around)) is not None:
            return diagnosis
    return None


def _tidy(text: str) -> str:
    """A text without the spaces, colons and parentheses that empty placeholders leave behind."""
    return _LEFT_BEHIND.sub("", text)


def _line_around(text: str, position: int) -> str:
    begin = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    return text[begin : end if end >= 0 else None].strip() or text.strip().partition("\n")[0]

"""What argparse and constructors refuse."""

from __future__ import annotations

from enginehouse.diagnosis.kinds import FailureKind
from enginehouse.diagnosis.rule import Rule

K = FailureKind


RULES = (
    Rule(
        K.UNKNOWN_FLAG,
        r"error: unrecognized arguments: [^\n]{0,300}?(?P<flag>--?[A-Za-z][^\s=]{0,80})",
        "this version of {engine} has no {flag} (any more)",
        "correct it or leave it out; the engine's own --help lists the flags that it has",
    ),
    Rule(
        K.WRONG_VALUE,
        r"error: unrecognized arguments: (?P<word>[^\s\-]\S{0,200})",
        "{word} on the command line belongs to no option",
        "see the quotes and spaces before it (a container's entry point may have the words "
        "`vllm serve` already); where a model takes an option, it is --model",
    ),
    Rule(
        K.WRONG_VALUE,
        r"error: argument (?P<flag>[^:\n]{1,300}): (?P<problem>.{0,600})",
        "{engine} refuses what {flag} was given: {problem}",
        "correct the value, or leave {flag} out",
    ),
    Rule(
        K.UNKNOWN_FLAG,
        r"error: (?:unexpected|[Ff]ound) argument '(?P<flag>--?[A-Za-z][^'\s]{0,80})'",
        "this version has no {flag} (any more)",
        "correct it or leave it out; the program's own --help lists the flags that it has",
    ),
    Rule(
        K.WRONG_VALUE,
        r"error: (?P<problem>(?:invalid value '[^'\n]{0,200}' for|a value is required for"
        r"|the (?:following required arguments? w(?:as|ere) not provided|argument '[^'\n]{1,80}'"
        r" cannot be used))[^\n]{0,200})",
        "{engine} refuses its command line: {problem}",
        "correct the option, or leave it out",
    ),
    Rule(
        K.WRONG_VALUE,
        r"error: the following arguments are required: (?P<flag>.{1,200})",
        "{engine} cannot start without {flag}",
        "add what is missing to the command line",
    ),
    Rule(
        K.UNKNOWN_FLAG,
        r"(?:EngineArgs|ServerArgs|LLM|AsyncEngineArgs|EngineConfig)\.?(?:__init__)?\(\) got an "
        r"unexpected keyword argument '(?P<flag>\w+)'",
        "this version of {engine} has no option {flag} (any more)",
        "correct it or leave it out",
    ),
)

from __future__ import annotations

import pytest

from enginehouse.core.errors import ConfigurationError, FlagError
from enginehouse.engines import arguments
from enginehouse.provisioning.description import Flag


def check(*words: str, flags, removed=None):
    """Check a command line against a list of flags."""
    arguments.check(
        arguments.read(words), flags=flags, removed=removed or {}, engine="vllm 0.32.0 (cpu)"
    )


@pytest.mark.parametrize(
    ("words", "flag", "values"),
    [
        (["--seed", "7"], "--seed", ("7",)),
        (["--seed=7"], "--seed", ("7",)),
        (["--seed", "-1"], "--seed", ("-1",)),
        (["--max_model_len", "9"], "--max-model-len", ("9",)),
        (["--max_model_len=9"], "--max-model-len", ("9",)),
        (["-tp", "2"], "-tp", ("2",)),
        (["-tp=2"], "-tp", ("2",)),
        (["-O3"], "--optimization-level", ("3",)),
        (["-O=3"], "--optimization-level", ("3",)),
        (["-O", "3"], "--optimization-level", ("3",)),
        (["--compilation_config.pass_config.x", "1"], "--compilation-config", ("1",)),
        (["-cc.mode=3"], "-cc", ("3",)),
        (["--lora-modules", "a=/x", "b=/y"], "--lora-modules", ("a=/x", "b=/y")),
        (["--chat-template="], "--chat-template", ("",)),
        (["--enforce-eager"], "--enforce-eager", ()),
    ],
)
def test_every_spelling_is_read(words, flag, values, flags):
    """All the ways in which vLLM's parser takes an option are understood, and known to it."""
    (argument,) = arguments.read(words)
    assert (argument.flag, argument.values) == (flag, values)
    check(*words, flags=flags)


def test_words_are_split_as_a_shell_would():
    """A string keeps quoted JSON together; a list is taken as it is."""
    assert arguments.split("""-q awq --x '{"a": 1}'""") == ("-q", "awq", "--x", '{"a": 1}')
    assert arguments.split(["--x", "a b"]) == ("--x", "a b")


def test_an_open_quote_is_refused():
    """A quote that is not closed is the user's error, told in words."""
    with pytest.raises(ConfigurationError, match="split"):
        arguments.split("--x 'a")


def test_a_word_without_a_flag_is_refused():
    """A stray word in front would become the model, silently."""
    with pytest.raises(ConfigurationError, match="'model'"):
        arguments.read(["model", "--seed", "1"])


@pytest.mark.parametrize(
    ("words", "message", "fix"),
    [
        (["--max-model-length", "9"], "no flag --max-model-length", "--max-model-len"),
        (["--seed"], "--seed needs a value", "--seed VALUE"),
        (["--enforce-eager", "true"], "takes no value, got 'true'", "--no-enforce-eager"),
        (["--enforce-eager=1"], "takes no value", "alone"),
        (["--headless", "x"], "takes no value", "write --headless alone"),
        (["--dtype", "int4"], "--dtype cannot be 'int4'", "bfloat16"),
        (["--zzz"], "no flag --zzz", "--help"),
    ],
)
def test_what_the_engine_would_refuse_is_refused_first(words, message, fix, flags):
    """Unknown flags, missing and superfluous values, wrong choices: each says what to write."""
    with pytest.raises(FlagError, match=message) as caught:
        check(*words, flags=flags)
    assert fix in caught.value.fix


def test_removed_flag_names_what_to_do_instead(flags):
    """A flag of the past gives its replacement, not the nearest spelling."""
    with pytest.raises(FlagError, match="--swap-space") as caught:
        check("--swap_space=4", flags=flags, removed={"--swap-space": "use X"})
    assert caught.value.fix == "use X"


def test_removed_flag_that_this_version_has_is_accepted():
    """An older engine that still has the flag may be given it."""
    check(
        "--swap-space",
        "4",
        flags={"--swap-space": Flag(takes_value=True)},
        removed={"--swap-space": "x"},
    )


def test_without_a_list_nothing_is_checked():
    """Where an environment could not tell its flags, the engine is left to judge."""
    check("--anything", flags={})

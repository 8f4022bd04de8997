"""Tracebacks are found by shape, kept apart by process, and read with their whole message."""

from __future__ import annotations

import re

from enginehouse.diagnosis import LogProfile
from enginehouse.diagnosis.events import Failure, Log, Reader

PROFILE = LogProfile(name="x", title="X", marks=re.compile("x"))
HEAD = "Traceback (most recent call last):"


def log(text: str) -> Log:
    """What a text says."""
    return Reader(PROFILE).read(text.splitlines())


def only(text: str) -> Failure:
    """Its one failure."""
    (failure,) = log(text).failures
    return failure


def frame(file: str) -> str:
    """A frame and its line of code."""
    return f'  File "{file}", line 1, in f\n    raise X("Error: not this")'


def test_exceptions_are_known_by_shape():
    """Plain Exception, lower-case names, names of any ending."""
    for line in (
        "Exception: a",
        "acme.planner.no_plan: b",
        "a.b.BackendCompilerFailed: c",
        "Empty",
    ):
        assert only(f"{HEAD}\n{frame('/a.py')}\n{line}").texts == [line]


def test_a_chain_is_one_failure():
    """The root cause first, whichever connection is named; each knows its files."""
    text = f"""\
{HEAD}
{frame("/root.py")}
KeyError: 'x'

The above exception was the direct cause of the following exception:

{HEAD}
{frame("/wrapper.py")}
RuntimeError: it failed

During handling of the above exception, another exception occurred:

{HEAD}
{frame("/outer.py")}
OSError: gone"""
    failure = only(text)
    assert failure.texts == ["KeyError: 'x'", "RuntimeError: it failed", "OSError: gone"]
    assert [raised.files for raised in failure.raised] == [
        ["/root.py"],
        ["/wrapper.py"],
        ["/outer.py"],
    ]


def test_processes_may_write_in_turns():
    """Each line says whose it is."""
    first, second = "(A pid=1) ", "(B pid=2) "
    lines = [
        f"{first}{HEAD}",
        f"{second}{HEAD}",
        f'{first}  File "/a.py", line 1, in f',
        f'{second}  File "/b.py", line 1, in f',
        "a bare line of somebody else",
        f"{second}ValueError: b",
        f"{first}KeyError: a",
        f"{second}and more of b",
    ]
    failures = {f.process: f for f in log("\n".join(lines)).failures}
    assert failures["A pid=1"].texts == ["KeyError: a"]
    assert failures["B pid=2"].texts == ["ValueError: b\nand more of b"]


def test_a_message_ends_where_something_else_begins():
    """A logger's line, another process's, a warning, the shell."""
    for other in (
        "(B pid=2) INFO 11-21 04:30:17 [a.py:1] fine",
        "Process SpawnProcess-1:",
        "/env/a.py:7: UserWarning: leaked",
        "Killed",
    ):
        found = log(f"{HEAD}\n{frame('/a.py')}\nValueError: a\nsecond line\n{other}\nthird line")
        assert found.failures[0].texts == ["ValueError: a\nsecond line"]


def test_a_traceback_within_a_message():
    """Ray quotes the remote one: its exception is a part of the chain."""
    text = f"""\
{HEAD}
{frame("/local.py")}
ray.exceptions.RayTaskError(KeyError): ray::Worker.run() (pid=9, ip=10.0.0.3)
  File "/remote.py", line 3, in run
    raise KeyError
KeyError: 'w'"""
    failure = only(text)
    assert failure.texts[-1] == "KeyError: 'w'"
    assert failure.raised[-1].files == ["/remote.py"]


def test_a_log_that_begins_within_a_traceback():
    """Its frames are enough."""
    assert only('  File "/a.py", line 3, in run\n    f()\nValueError: x').texts == ["ValueError: x"]


def test_lost_indentation():
    """A web page may have eaten it: the line after a file is code."""
    lines = (HEAD, 'File "/a.py", line 3, in run', "self.run(x)", "^^^^", 'File "/b.py", line 1')
    text = "\n".join((*lines, "ValueError: x"))
    assert only(text).texts == ["ValueError: x"]


def test_an_assertion_without_words_says_its_code():
    """Otherwise nothing would."""
    text = f'{HEAD}\n  File "/a.py", line 3, in run\n    assert a.shape == b.shape\nAssertionError'
    assert only(text).texts == ["AssertionError\nassert a.shape == b.shape"]


def test_a_traceback_drawn_in_a_box():
    """As rich prints it."""
    text = f"""\
╭───────── {HEAD.rstrip(":")} ─────────╮
│ /env/a.py:12 in run                  │
│ ❱ 12 │   raise ValueError            │
╰──────────────────────────────────────╯
ValueError: x"""
    failure = only(text)
    assert failure.texts == ["ValueError: x"]
    assert failure.raised[0].files == ["/env/a.py"]


def test_what_is_kept_is_bounded():
    """Of endless failures the first and the last, of a chain and a message likewise."""
    one = f"{HEAD}\n{frame('/a.py')}\nValueError: "
    found = log("\n".join(f"{one}{number}" for number in range(5_000)))
    assert len(found.failures) <= 600
    assert found.failures[0].texts == ["ValueError: 0"]
    assert found.failures[-1].texts == ["ValueError: 4999"]
    chain = f"{one}x\n\nDuring handling of the above exception, another exception occurred:\n\n"
    assert len(only(chain * 500).raised) <= 24
    assert len(only(one + "x" * 100 + "\nmore" * 10_000).texts[0]) <= 4_000
    remarks = log("something cannot be found\n" * 5_000).remarks
    assert len(remarks) <= 600


def test_the_last_line_that_waits_is_known():
    """For a start that ran out of time."""
    found = log(
        "INFO 11-21 04:30:17 [a.py:1] Waiting for the other node\nINFO 11-21 04:30:17 [b.py:1] x"
    )
    assert found.waiting == "Waiting for the other node"

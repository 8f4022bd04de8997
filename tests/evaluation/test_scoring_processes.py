from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from enginehouse.core.errors import ScoringError, ScoringTimeoutError
from enginehouse.evaluation.scoring_processes import ScoringProcesses
from enginehouse.processes import sandbox as sandbox_module
from enginehouse.processes.sandbox import Sandbox
from enginehouse.tasks import scoring_programs
from enginehouse.tasks.base import Measure, Outcome, ScoringCall
from enginehouse.tasks.metrics import load_metric

JUDGE = """
    import contextlib, mmap, os, pathlib, signal, socket, subprocess, sys, time

    def judge(text, item):
        return eval(text)

    def kill_siblings():
        parent = os.getppid()
        children = pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for pid in {*map(int, children)} - {os.getpid()}:
            os.kill(pid, signal.SIGKILL)
        return False

    def write_verdicts(line, files):
        for file in files:
            with contextlib.suppress(OSError):
                os.write(file if isinstance(file, int) else os.open(file, os.O_WRONLY), line)
        return False
"""


@pytest.fixture(params=["sandbox", "bare"])
def kind(request, monkeypatch):
    """With the sandbox of this machine, if there is one, and as if there were none."""
    if request.param == "bare":
        none = Sandbox(problem="a test wants none", fix="wait for its end")
        monkeypatch.setattr(scoring_programs, "find_sandbox", lambda: none)
    elif sandbox_module.find_sandbox().problem:
        pytest.skip("there is no sandbox on this machine")
    return request.param


@pytest.fixture
def grace():
    """Seconds until a silent process counts as hung; a test may want fewer."""
    return 15.0


@pytest.fixture
async def score(tmp_path, kind, grace):
    """Scores a text by a function that evaluates it, within a second, unless told otherwise."""
    (tmp_path / "m.py").write_text(textwrap.dedent(JUDGE))
    processes = ScoringProcesses(grace=grace)
    load = functools.cache(load_metric)

    async def scored(text, *, seconds=1.0, trusted=False):
        metric = load("m:judge", folder=tmp_path, seconds=seconds, trusted=trusted)
        call = ScoringCall(program=metric.program, arguments={"text": text, "item": {}})
        return await processes.score(call)

    yield scored
    await processes.close()


@pytest.fixture
def starts(monkeypatch):
    """The programs for which a process was started, from here on."""
    started = []

    def start_of(program):
        started.append(program)
        return scoring_programs.start_of(program)

    monkeypatch.setattr("enginehouse.evaluation.scoring_processes.start_of", start_of)
    return started


def children() -> set[int]:
    """The processes that descend from this one."""
    return {process.pid for process in psutil.Process().children(recursive=True)}


async def until(condition) -> None:
    """Wait for something that takes milliseconds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_many_answers_at_once(score):
    """Each gets its own verdict."""
    shares = await asyncio.gather(*(score(f"{n} / 200") for n in range(200)))
    assert [s.measures["score"].value for s in shares] == [n / 200 for n in range(200)]


@pytest.mark.slow
async def test_a_late_answer_and_a_dead_one_leave_the_others_alone(score):
    """They share a process; both get their own errors, the rest their scores."""
    texts = ["True", "time.sleep(60)", "False", "os._exit(7)", "True", "os.kill(os.getpid(), 9)"]
    results = await asyncio.gather(*map(score, texts * 3), return_exceptions=True)
    assert [type(r).__name__ for r in results] == [
        "Score", "ScoringTimeoutError", "Score", "ScoringError", "Score", "ScoringError",
    ] * 3  # fmt: skip
    assert [r.outcome for r in results if not isinstance(r, Exception)] == [
        Outcome.CORRECT, Outcome.WRONG, Outcome.CORRECT,
    ] * 3  # fmt: skip


async def test_what_an_answer_leaves_running_is_killed(score, tmp_path):
    """Even in a session of its own, under a parent that has ended."""
    orphan = "subprocess.Popen(['sleep', '1234'], start_new_session=True).pid > 0"
    assert (await score(orphan)).outcome is Outcome.CORRECT
    assert (await score("True")).outcome is Outcome.CORRECT
    left = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "1234"]]
    assert left == []


async def test_a_child_of_an_answer_scores_nothing(score):
    """Code that forks returns twice; one verdict counts, for its own answer."""
    texts = ["os.fork() >= 0", "1 / 4", "os.fork() * 0 + 1 / 2", "3 / 4"]
    scores = await asyncio.gather(*map(score, texts))
    assert [s.measures.get("score") for s in scores[1:]] == [
        Measure(0.25),
        Measure(0.5),
        Measure(0.75),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "os.kill(os.getppid(), signal.SIGKILL)",
        "os.kill(os.getppid(), signal.SIGSTOP) or time.sleep(60)",
    ],
)
@pytest.mark.parametrize("grace", [0.5])
async def test_a_process_that_is_broken_is_replaced(score, text):
    """An answer that kills or stops the process of all answers is an error of that answer."""
    results = await asyncio.gather(
        score("True"), score(text), score("True"), return_exceptions=True
    )
    assert isinstance(results[1], ScoringError)
    assert [r.outcome for r in (results[0], results[2])] == [Outcome.CORRECT] * 2
    assert (await score("False")).outcome is Outcome.WRONG


@pytest.mark.parametrize(
    "text",
    [
        "bytearray(3 << 30)",
        "bool(mmap.mmap(-1, 3 << 30))",
        "pathlib.Path(__file__).with_name('new').write_text('x')",
        "socket.create_connection(('127.0.0.1', 1))",
    ],
)
async def test_what_is_limited_with_and_without_a_sandbox(score, text, tmp_path):
    """Memory, what is written to files, and the network where the kernel allows."""
    with pytest.raises(ScoringError):
        await score(text)
    assert sum(file.stat().st_size for file in tmp_path.glob("new")) == 0


async def test_an_answer_writes_no_verdict_on_another(score):
    """The files of the process that all answers go through are closed to it."""
    parents = "[f'/proc/{os.getppid()}/fd/{n}' for n in range(16)]"
    forged = b"".join(b'{"id": %d, "correct": 1.0}\n' % number for number in range(1, 10))
    texts = ["True", "False", f"write_verdicts({forged!r}, {parents})", "False"]
    scores = await asyncio.gather(*map(score, texts))
    assert [s.outcome for s in scores] == [Outcome.CORRECT, *[Outcome.WRONG] * 3]
    with pytest.raises(ScoringError):
        await score("bool(open(f'/proc/{os.getppid()}/mem', 'rb'))")


@pytest.mark.parametrize(
    "line",
    [
        '{"correct": "yes"}',
        '{"correct": 1e999}',
        '{"error": "\\ud800"}',
        '{"measures": [1.0]}',
        '{"measures": ' + "[" * 900 + "]" * 900 + "}",
        "[]",
    ],
    ids=range(6),
)
async def test_a_verdict_that_cannot_be_read_is_its_own_answers_error(score, line, starts):
    """The process goes on, so that no other answer has to be scored again for it."""
    with pytest.raises(ScoringError):
        await score(f"write_verdicts({line.encode()!r} + b'\\n', range(3, 16))")
    assert len(starts) == 1


@pytest.mark.parametrize("text", ["{'correct': True, chr(0xD800): 1}", "[].remove(chr(0xD800))"])
async def test_half_characters_are_an_error_of_that_answer(score, text, starts):
    """In what it returns or raises."""
    with pytest.raises(ScoringError):
        await score(text)
    assert len(starts) == 1


async def test_closing_ends_while_a_verdict_comes(tmp_path, kind):
    """A line that arrives just then does not keep the reader reading."""
    (tmp_path / "m.py").write_text(textwrap.dedent(JUDGE))
    program = load_metric("m:judge", folder=tmp_path).program
    processes = ScoringProcesses()
    await processes.score(ScoringCall(program=program, arguments={"text": "True", "item": {}}))
    process = processes._lines[program]._process
    process._replies.feed_data(b'{"id": 1}\n')
    async with asyncio.timeout(10):
        await processes.close()


@pytest.mark.slow
async def test_an_answer_that_kills_others_takes_no_score_from_them(score):
    """Theirs are scored a second time."""
    texts = ["time.sleep(0.5) is None", "True", "kill_siblings()"]
    scores = await asyncio.gather(*map(score, texts))
    assert [s.outcome for s in scores] == [Outcome.CORRECT, Outcome.CORRECT, Outcome.WRONG]


@pytest.mark.slow
@pytest.mark.parametrize("grace", [5.0])
async def test_a_huge_answer_is_read_in_linear_time(score):
    """It came as a server's reply may come; read again with each piece, it would take minutes."""
    assert (await score("True #" + "x" * (40 << 20), seconds=5)).outcome is Outcome.CORRECT


async def test_secrets_do_not_reach_it(score, monkeypatch):
    """Neither in its variables nor in those of the process that asks."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert (await score("'HF_TOKEN' in os.environ")).outcome is Outcome.WRONG
    with pytest.raises(ScoringError):
        await score(f"'HF' in open('/proc/{os.getpid()}/environ').read()")


@pytest.mark.slow
async def test_a_trusted_function_may_do_what_we_may(score, tmp_path, monkeypatch):
    """Its time is limited all the same."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    file = tmp_path / "written"
    written = f"pathlib.Path({str(file)!r}).write_text('x') and os.environ['HF_TOKEN'] == 'secret'"
    assert (await score(written, trusted=True)).outcome is Outcome.CORRECT
    assert file.read_text() == "x"
    with pytest.raises(ScoringTimeoutError):
        await score("time.sleep(60)", trusted=True, seconds=0.3)


@pytest.mark.slow
async def test_the_event_loop_goes_on(score):
    """While answers are scored, nothing else waits."""
    await score("True")
    work = asyncio.gather(
        *(score("time.sleep(60)", seconds=1.5) for _ in range(3)), return_exceptions=True
    )
    longest, begin = 0.0, time.monotonic()
    latest = begin
    while not work.done():
        await asyncio.sleep(0.005)
        now = time.monotonic()
        latest, longest = now, max(longest, now - latest)
    assert longest < (latest - begin) / 2


async def test_closing_leaves_nothing(tmp_path, kind):
    """With answers at work, too."""
    (tmp_path / "m.py").write_text(textwrap.dedent(JUDGE))
    metric = load_metric("m:judge", folder=tmp_path, seconds=60)
    before = children()
    processes = ScoringProcesses()
    arguments = {"text": "time.sleep(60)", "item": {}}
    call = ScoringCall(program=metric.program, arguments=arguments)
    work = asyncio.create_task(processes.score(call))
    await until(lambda: children() > before)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await processes.close()
    await processes.close()
    await until(lambda: children() == before)
    assert children() == before


async def test_a_program_that_no_longer_loads_is_told_each_answer(tmp_path, kind):
    """The module may change while a run goes on."""
    (tmp_path / "m.py").write_text("def judge(text, item): return True\n")
    metric = load_metric("m:judge", folder=tmp_path)
    (tmp_path / "m.py").write_text("1 / 0\n")
    processes = ScoringProcesses()
    call = ScoringCall(program=metric.program, arguments={"text": "", "item": {}})
    results = await asyncio.gather(*(processes.score(call),) * 3, return_exceptions=True)
    await processes.close()
    assert [str(r) for r in results] == [str(results[0])] * 3
    assert "ZeroDivisionError" in str(results[0])


PARENT = """
import asyncio, sys
from pathlib import Path
from enginehouse.evaluation.scoring_processes import ScoringProcesses
from enginehouse.processes.sandbox import Sandbox
from enginehouse.tasks import scoring_programs
from enginehouse.tasks.base import ScoringCall
from enginehouse.tasks.metrics import load_metric

if sys.argv[2] == "bare":
    scoring_programs.find_sandbox = lambda: Sandbox(problem="none wanted")

async def main():
    metric = load_metric("m:judge", folder=Path(sys.argv[1]), seconds=600)
    processes = ScoringProcesses()
    text = "subprocess.run(['sleep', '4321'], start_new_session=True)"
    call = ScoringCall(program=metric.program, arguments={"text": text, "item": {}})
    await processes.score(call)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_nothing_outlives_a_killed_parent(tmp_path, kind):
    """Kill -9 of the controller, with an answer that has started a program of its own."""
    (tmp_path / "m.py").write_text(textwrap.dedent(JUDGE))
    parent = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", PARENT, str(tmp_path), kind]
    )

    def has_begun(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return "4321" in process.cmdline()
        return False

    def descendants() -> list[psutil.Process]:
        return psutil.Process(parent.pid).children(recursive=True)

    try:
        await until(lambda: any(has_begun(process) for process in descendants()))
        left = descendants()
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    gone, alive = await asyncio.to_thread(psutil.wait_procs, left, timeout=20)
    assert alive == []
    assert len(gone) >= 3

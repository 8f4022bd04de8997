"""A program that shares our terminal: started, waited for, signalled, gone with its children."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.command_line import SOURCE, until

from enginehouse.core.errors import CommandNotFoundError, NotExecutableError
from enginehouse.processes.foreground import require_program, run_in_foreground
from enginehouse.processes.process import Command
from enginehouse.processes.tree import identify

ENVIRONMENT = {"PATH": os.environ["PATH"]}


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    return identify(pid) is not None


def run(*argv: str, env: dict[str, str] = ENVIRONMENT) -> int:
    """The exit code of a program in the foreground; negative for a signal."""

    async def whole() -> int:
        async with run_in_foreground(Command(argv=argv, env=env)) as process:
            return await process.wait()

    return asyncio.run(whole())


def shell(line: str) -> int:
    """The exit code of a line of shell."""
    return run("/bin/sh", "-c", line)


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_the_exit_code(code: int):
    """Is the program's."""
    assert shell(f"exit {code}") == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ended_by_a_signal(number: signal.Signals):
    """The exit code is negative."""
    assert shell(f"kill -{number:d} $$") == -number


def test_its_output_and_environment(capfd: pytest.CaptureFixture[str]):
    """What it prints is its own, and it has exactly the variables that it is given."""
    code = "import os, sys; print(sorted(os.environ)); print('said', file=sys.stderr)"
    env = {"GIVEN": "1", "LC_CTYPE": "C.UTF-8"}  # the second is Python's own
    assert run(sys.executable, "-c", code, env=env) == 0
    out, err = capfd.readouterr()
    assert set(eval(out)) - {"_"} == {"GIVEN", "LC_CTYPE"}
    assert err == "said\n"


def test_its_signals_are_as_they_are_by_default():
    """A closed pipe ends it, though Python ignores that signal."""
    assert shell("kill -PIPE $$") == -signal.SIGPIPE


def test_words_that_a_shell_would_take_apart(capfd: pytest.CaptureFixture[str]):
    """Reach it as they are."""
    words = ["a b", "$HOME", "", "*", "'", '"', "\\", "new\nline", "-x", "k=v"]
    assert run(sys.executable, "-c", "import sys; print(sys.argv[1:])", *words) == 0
    assert eval(capfd.readouterr().out) == words


@pytest.mark.slow
def test_standard_input_is_ours(tmp_path: Path):
    """It reads what we were given."""
    code = "from tests.processes.test_foreground import run; run('/bin/sh', '-c', 'cat; cat <&7')"
    (tmp_path / "more").write_text("and more")
    line = f'exec 7<"$1"; exec "{sys.executable}" -c "$0"'
    env = ENVIRONMENT | {"PYTHONPATH": f"{SOURCE}:{SOURCE.parent}"}
    argv = ["/bin/sh", "-c", line, code, str(tmp_path / "more")]
    done = subprocess.run(argv, input="typed ", env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "typed and more"


@pytest.mark.parametrize("how", ["exit 0", "kill -9 $$"])
def test_what_it_leaves_running_is_ended(tmp_path: Path, how: str):
    """Also children that outlive it, whatever ended it."""
    pid = tmp_path / "pid"
    assert shell(f"sleep 600 & echo $! > {pid}; {how}") in (0, -signal.SIGKILL)
    assert not is_alive(int(pid.read_text()))


def test_leaving_the_block_ends_it():
    """Cancelled while it runs, as by Ctrl-C before it is up."""

    async def cancelled() -> int:
        command = Command(argv=("sleep", "600"), env=ENVIRONMENT)
        async with run_in_foreground(command) as process:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await process.wait()
            return process.pid

    assert not is_alive(asyncio.run(cancelled()))


def test_signals_are_forwarded():
    """Once, to the program and its children, which decide for themselves."""
    program = "import signal, sys; signal.signal(signal.SIGINT, lambda *_: sys.exit(42))\n"
    program += "open(sys.argv[1], 'w').close()\nwhile True: signal.pause()"

    async def forwarded(ready: str) -> int:
        command = Command(argv=(sys.executable, "-c", program, ready), env=ENVIRONMENT)
        async with run_in_foreground(command) as process:
            while not Path(ready).exists():  # noqa: ASYNC110, ASYNC240
                await asyncio.sleep(0.01)
            process.forward(signal.SIGINT)
            code = await process.wait()
            process.forward(signal.SIGINT)  # too late, and harmless
            return code

    ready = Path(os.environ["ENGINEHOUSE_HOME"]) / "ready"
    ready.parent.mkdir(parents=True)
    assert asyncio.run(forwarded(str(ready))) == 42


@pytest.mark.slow
def test_it_does_not_outlive_us(tmp_path: Path):
    """Kill -9 of the process that started it."""
    pid = tmp_path / "pid"
    code = "from tests.processes.test_foreground import shell\n"
    code += f"shell('sleep 600 & echo $! $$ > {pid}; wait')"
    env = ENVIRONMENT | {"PYTHONPATH": f"{SOURCE}:{SOURCE.parent}"}
    with subprocess.Popen([sys.executable, "-c", code], env=env) as starter:
        until(lambda: pid.exists() and pid.read_text().endswith("\n"), "it does not start")
        starter.kill()
    pids = [int(word) for word in pid.read_text().split()]
    until(lambda: not any(map(is_alive, pids)), "it outlives us")


def test_a_program_that_is_not_there(tmp_path: Path):
    """What a shell refuses, with a shell's exit codes."""
    script = tmp_path / "script"
    script.write_text("echo")
    env = {"PATH": f"/nowhere:{tmp_path}"}
    for name in ("no-such-program", "", str(tmp_path / "missing"), "./missing"):
        with pytest.raises(CommandNotFoundError) as missing:
            require_program(Command(argv=(name,), env=env))
        assert missing.value.exit_code == 127
    for name in ("script", str(script), str(tmp_path)):
        with pytest.raises(NotExecutableError) as refused:
            require_program(Command(argv=(name,), env=env))
        assert refused.value.exit_code == 126
    script.chmod(0o755)
    require_program(Command(argv=("script",), env=env))


def test_a_script_without_an_interpreter(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Is run by the shell, as in a shell."""
    script = tmp_path / "script"
    script.write_text('echo "said $1"; exit 5')
    script.chmod(0o755)
    assert run(str(script), "it") == 5
    assert capfd.readouterr().out == "said it\n"

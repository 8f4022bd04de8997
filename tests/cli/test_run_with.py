"""`enginehouse run-with`: another program's variables, signals, exit code, and what is left."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import SUPPORT
from tests.support.command_line import Finished, House, Running, until
from tests.support.tiny_adapters import BASE, write_adapter
from tests.support.tiny_checkpoints import write_checkpoint

# Prints what a client reads, and the answer to one question.
ASK = """
import json, os, sys, urllib.request
body = {"model": os.environ["OPENAI_MODEL"], "max_tokens": 24, "temperature": 0}
body["messages"] = [{"role": "user", "content": sys.argv[1]}]
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions")
request.add_header("Authorization", "Bearer " + os.environ["OPENAI_API_KEY"])
request.add_header("Content-Type", "application/json")
with urllib.request.urlopen(request, json.dumps(body).encode()) as reply:
    print(json.load(reply)["choices"][0]["message"]["content"])
"""
# Says that it is there, then waits; it answers signals as its arguments say.
WAIT = """
import os, signal, sys, time
def handle(number, _):
    print("got", signal.Signals(number).name, flush=True)
    if number != signal.SIGUSR1:
        sys.exit(7)
for name in sys.argv[1:]:
    signal.signal(getattr(signal, name), handle)
print("WAITING", os.getpid(), flush=True)
while True:
    time.sleep(60)
"""


@pytest.fixture
def words(house: House) -> tuple[str, ...]:
    """`run-with` of a fake engine that knows one answer."""
    house.model()
    house.write("ask.py", ASK)
    house.write("wait.py", WAIT)
    return ("run-with", "tiny", "--env", house.answers({"capital": "Paris."}))


def waiting(house: House, words: tuple[str, ...], *handled: str) -> tuple[Running, int]:
    """`run-with` of the program that waits, and that program's pid."""
    running = house.start(*words, "--", sys.executable, "wait.py", *handled)
    return running, int(re.findall(r"^WAITING (\d+)$", running.until("WAITING"), re.MULTILINE)[0])


@pytest.mark.slow
def test_a_program_asks_the_model(house: House, call, words: tuple[str, ...]):
    """Its standard output is its own, the exit code too; then the server is gone."""
    done = house.run(*words, "--", sys.executable, "ask.py", "the capital?")
    assert (done.code, done.out) == (0, "Paris.\n"), done.err
    assert "ready after" in done.err
    done = house.run(*words, "-q", "--", sys.executable, "ask.py", "the capital?")
    assert (done.code, done.out, done.err) == (0, "Paris.\n", "")
    assert call("ps", "--json").report == []


@pytest.mark.slow
def test_the_variables(house: House, words: tuple[str, ...]):
    """All that clients read; the user's own key does not reach the program, nor a proxy's."""
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    own = {"OPENAI_API_KEY": "sk-own", "OPENAI_API_TYPE": "azure", "NO_PROXY": "example.org"}
    done = house.run(*words, "-q", "--", sys.executable, "-c", code, KEPT="1", **own)
    found = json.loads(done.out)
    url = found["OPENAI_BASE_URL"]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", url)
    for name in ("OPENAI_API_BASE", "VLLM_BASE_URL", "HOSTED_VLLM_API_BASE", "PRIME_INFERENCE_URL"):
        assert found[name] == url
    for name in ("VLLM_API_KEY", "HOSTED_VLLM_API_KEY", "PRIME_API_KEY"):
        assert found[name] == found["OPENAI_API_KEY"] != "sk-own"
    assert found["OPENAI_MODEL"] == found["OPENAI_MODEL_NAME"] == "tiny"
    assert found["INSPECT_EVAL_MODEL"] == "vllm/tiny"
    assert found["NO_PROXY"] == "example.org,127.0.0.1,localhost"
    assert (found["KEPT"], "OPENAI_API_TYPE" in found) == ("1", False)
    documented = (Path(__file__).parents[2] / "docs/run-with.md").read_text()
    assert [
        n for n in found if found[n] in (url, "tiny", "vllm/tiny") and n not in documented
    ] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code"), [("exit 5", 5), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
)
def test_the_exit_code_is_the_programs(house: House, words: tuple[str, ...], line: str, code: int):
    """128 + N for one that a signal ended; whatever it has started is ended, too."""
    done = house.run(*words, "-q", "--", "sh", "-c", f"sleep 600 & {line}")
    assert (done.code, done.out, done.err) == (code, "", "")
    house.nothing_left()


@pytest.mark.parametrize(
    ("command", "code"), [(["no-such-program", "-x"], 127), (["/etc/passwd"], 126), ([], 2)]
)
def test_what_cannot_be_run(call, words: tuple[str, ...], command: list[str], code: int):
    """Is refused before a server is started, in words and with a shell's exit codes."""
    done = call(*words, "--", *command)
    assert (done.code, done.out) == (code, "")
    assert "error: " in done.err
    assert "next: " in done.err
    assert "starting" not in done.err


def test_without_the_dashes(call, words: tuple[str, ...]):
    """The words of the command might be taken for our own options."""
    done = call(*words, "python", "script.py")
    assert done.code == 2
    assert "-- python script.py" in done.err


@pytest.mark.parametrize("option", ["--replay", "--resume"])
def test_nothing_to_replay(call, words: tuple[str, ...], option: str):
    """Each needs the folder of an earlier --record."""
    done = call(*words, option, "--", "true")
    assert done.code == 2
    assert "record" in done.err
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_the_options_of_the_command_are_its_own(house: House, words: tuple[str, ...]):
    """Whatever they are called, a second `--` included."""
    code = "import sys; print(sys.argv[1:])"
    theirs = ["--swap-space", "4", "-v", "--help", "--", "--version"]
    done = house.run(*words, "-q", "--", sys.executable, "-c", code, *theirs)
    assert (done.code, done.out) == (0, f"{theirs}\n"), done.err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_forwarded(house: House, words: tuple[str, ...], number: signal.Signals):
    """The program decides how it ends, and the server is stopped after it."""
    running, _ = waiting(house, words, "SIGUSR1", number.name)
    running.interrupt(signal.SIGUSR1)
    running.until("got SIGUSR1")
    running.interrupt(number)
    done = running.end()
    assert done.code == 7, done.err
    assert done.out.splitlines()[1:] == ["got SIGUSR1", f"got {number.name}"]
    assert "Traceback" not in done.err
    house.nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_program_that_handles_none(
    house: House, words: tuple[str, ...], number: signal.Signals
):
    """128 + N, as of any program."""
    running, _ = waiting(house, words)
    running.interrupt(number)
    assert running.end().code == 128 + number
    house.nothing_left()


@pytest.mark.slow
def test_interrupted_while_the_server_starts(house: House, words: tuple[str, ...]):
    """Nothing is run."""
    running = house.start(*words, "--env", "VLLM_FAKE_START_DELAY=inf", "--", "touch", "ran")
    running.until("starting vllm")
    running.interrupt()
    done = running.end()
    assert done.code == 130
    assert done.err.splitlines()[-1].startswith("interrupted")
    assert not (house.work / "ran").exists()
    house.nothing_left()


@pytest.mark.slow
def test_ctrl_c_at_a_terminal(house: House, words: tuple[str, ...]):
    """Once: the program gets it from the terminal, and not again from us."""
    if shutil.which("setsid") is None:
        pytest.skip("setsid (util-linux) is not installed")
    program = "import signal, time\nn = 0\ndef handle(*_):\n    global n\n    n += 1\n"
    program += "signal.signal(signal.SIGINT, handle)\nprint('WAITING', flush=True)\n"
    program += "while not n: time.sleep(0.01)\ntime.sleep(1)\nprint('times:', n)\n"
    screen, terminal = pty.openpty()
    argv = ["setsid", "--ctty", "--wait", sys.executable, "-m", "enginehouse", *words]
    argv += ["--", sys.executable, "-c", program]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    with subprocess.Popen(argv, env=house.env, cwd=house.work, **streams) as process:
        os.close(terminal)
        shown = b""
        while b"WAITING\r\n" not in shown:
            shown += os.read(screen, 1 << 16)
        os.write(screen, b"\x03")
        while b"times" not in shown:
            shown += os.read(screen, 1 << 16)
        assert b"times: 1" in shown
        process.wait()
    os.close(screen)
    assert process.returncode == 0
    house.nothing_left()


@pytest.mark.slow
def test_we_are_killed(house: House, call, words: tuple[str, ...]):
    """The reapers end the program and the server."""
    running, _ = waiting(house, words)
    assert running.kill().code == -signal.SIGKILL
    until(lambda: not house.processes(), lambda: str(house.processes()))
    assert call("ps", "--json").report == []


@pytest.mark.slow
def test_a_running_server_is_borrowed(house: House, call, words: tuple[str, ...]):
    """By its name and by its address, with its key; it stays."""
    begun = call("serve", *words[1:], "--detach", "--name", "mine", "--api-key", "k3y")
    assert begun.code == 0, begun.err
    (server,) = call("ps", "--json").report
    url = server["record"]["base_url"]
    ask = ("--", sys.executable, "ask.py", "the capital?")
    assert house.run("run-with", "mine", *ask).code == 6  # the key is not ours to know
    for named in (("mine",), ("--url", url), (url,), (f"{url}/v1",)):
        done = house.run("run-with", *named, *ask, ENGINEHOUSE_API_KEY="k3y")
        assert (done.code, done.out) == (0, "Paris.\n"), done.err
        assert "mine" in done.err
    (same,) = call("ps", "--json").report
    assert same["record"]["process"] == server["record"]["process"]
    assert call("stop", "mine").code == 0


@pytest.mark.slow
def test_the_engine_is_killed_twice(house: House, call, words: tuple[str, ...]):
    """The program notices nothing, nor does the openai SDK: forty questions, forty answers."""
    script = str(SUPPORT / "openai_questions.py")
    running = house.start(
        *words, "--env", "VLLM_FAKE_TOKEN_LATENCY=0.2", "--", sys.executable, script, "40"
    )
    killed: set[int] = set()

    def alive() -> int | None:
        (server,) = call("ps", "--json").report
        pid = server["record"]["process"]["pid"]
        return pid if server["state"] == "ready" and pid not in killed else None

    for answers in (4, 16):
        until(lambda n=answers: len(running.out.read_text().splitlines()) >= n, "no answers")
        pid = until(alive, "it is not started again")
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    done = running.end()
    assert done.code == 0, done.err
    assert done.out.splitlines() == [f"{number} Paris." for number in range(40)]
    assert done.err.count("starting it again") == 2
    house.nothing_left()


@pytest.mark.slow
def test_a_server_that_is_given_up(house: House, call, words: tuple[str, ...]):
    """The program is told by failing requests, and its exit code stands; we say why."""
    code = "import subprocess, sys, os, time; print('WAITING', flush=True)\n"
    code += "while not os.path.exists('go'): time.sleep(0.01)\n"
    code += "sys.exit(subprocess.call([sys.executable, 'ask.py', 'x'], stderr=-3) and 9)"
    command = ("--max-restarts", "0", "--", sys.executable, "-c", code)
    running = house.start(*words, *command)
    running.until("WAITING")
    (server,) = call("ps", "--json").report
    os.kill(server["record"]["process"]["pid"], signal.SIGKILL)
    running.until("gone for good")
    house.write("go", "")
    done = running.end()
    assert done.code == 9, done.err
    house.nothing_left()


@pytest.mark.slow
def test_recorded_and_replayed(house: House, words: tuple[str, ...], tmp_path: Path):
    """A second run is answered from what the first one recorded."""
    record = ("--record", str(tmp_path / "record"))
    ask = ("--", sys.executable, "ask.py", "the capital?")

    def answer(*more: str, **env: str) -> Finished:
        return house.run(*words, *record, *more, "-q", *ask, **env)

    assert answer().out == "Paris.\n"
    house.answers({"capital": "Rome."})
    assert answer("--replay").out == "Paris.\n"
    assert answer().out == "Rome.\n"


@pytest.mark.slow
def test_a_sampled_program_is_resumed(house: House, words: tuple[str, ...], tmp_path: Path):
    """It gets what it was given before, in its order; then the model is asked on."""
    record = ("--record", str(tmp_path / "record"), "--resume", "-q")
    house.write("sample.py", ASK.replace('"temperature": 0', '"temperature": 1'))
    ask = f"{sys.executable} sample.py 'the capital?'"

    def answers(count: int) -> str:
        line = " && ".join([ask] * count)
        done = house.run(*words, *record, "--", "sh", "-c", line)
        assert done.code == 0, done.err
        return done.out

    assert answers(1) == "Paris.\n"
    house.answers({"capital": "Rome."})
    assert answers(2) == "Paris.\nRome.\n"
    house.answers({"capital": "Oslo."})
    assert answers(3) == "Paris.\nRome.\nOslo.\n"


@pytest.mark.slow
def test_a_program_names_an_adapter(house: House, tmp_path: Path):
    """The server is started with room for it, and an unknown name is refused."""
    write_checkpoint(house.work / "tiny", shapes=dict(BASE))
    write_adapter(tmp_path / "adapters" / "mine")
    house.write("ask.py", ASK)
    words = ("run-with", "tiny", "--adapters", str(tmp_path / "adapters"), "-q", "--", "sh", "-c")

    def code(model: str) -> int:
        line = f"OPENAI_MODEL={model} exec {sys.executable} ask.py hello"
        return house.run(*words, line).code

    assert code("mine") == 0
    assert code("yours") == 1
    house.nothing_left()

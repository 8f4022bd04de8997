"""The real command line as its user has it: a home, an engine environment, a model, files."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from enginehouse.engines.options import ServerOptions
from enginehouse.evaluation.records import Record, SampleRecord, ScoreRecord
from enginehouse.servers.ports import live_leases
from enginehouse.store.journal import read_journal
from enginehouse.store.layout import Layout

SOURCE = Path(__file__).parents[2] / "src"
DEADLINE = 60.0  # seconds that a condition may take to come true
POLL = 0.01  # seconds between looks
WORDS = "alpha beta gamma delta "
# GiB for the KV cache: vLLM writes all of it before it is ready, and several servers share the
# memory. With the 2 GiB that it would get on a small machine, a start takes four seconds longer.
SMALL_VLLM = {"VLLM_CPU_KVCACHE_SPACE": "1"}


class Finished(NamedTuple):
    """A command that ended. `code` is its exit code, negative for a signal."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


def until(
    condition: Callable[[], Any], what: Callable[[], str] | str, *, patience: float | None = None
) -> Any:
    """Wait for something true and give it; after `patience` seconds (DEADLINE) fail with `what`."""
    deadline = time.monotonic() + (patience or DEADLINE)
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(what if isinstance(what, str) else what())
        time.sleep(POLL)
    return found


class Running:
    """A command that was started; what it says is read from files, so that it never waits."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        log: Path,
        patience: float | None = None,
    ) -> None:
        self.patience = patience
        self.out, self.err = log.with_suffix(".out"), log.with_suffix(".err")
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def until(self, text: str) -> str:
        """Wait until it has said `text`; gives what it said until then."""

        def look() -> str | None:
            said = self.out.read_text() + self.err.read_text()
            if text in said:
                return said
            assert self.process.poll() is None, f"ended before it said {text!r}:\n{said}"
            return None

        return until(
            look,
            lambda: f"did not say {text!r}:\n{self.err.read_text()}",
            patience=self.patience,
        )

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def end(self) -> Finished:
        """Wait for its end."""
        try:
            code = self.process.wait(self.patience or DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"it does not end:\n{self.err.read_text()}") from None
        return Finished(code, self.out.read_text(), self.err.read_text())

    def kill(self) -> Finished:
        """Kill -9."""
        self.process.kill()
        return self.end()


class House:
    """One user's machine, below one folder: home, engine environment, model, working folder.

    Its commands have `patience` seconds to end (None: DEADLINE).
    """

    def __init__(
        self,
        folder: Path,
        *,
        python: Path | None,
        env: Mapping[str, str] | None = None,
        patience: float | None = None,
    ) -> None:
        self.patience = patience
        self.folder = folder
        self.home = folder / "home"
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        (folder / "user").mkdir()
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder / "user"),
            "PYTHONPATH": str(SOURCE),
            "ENGINEHOUSE_HOME": str(self.home),
        }
        if python is not None:
            self.env["ENGINEHOUSE_VLLM_PYTHON"] = str(python)
        self.env |= env or {}
        self._commands: list[Running] = []

    def write(self, name: str, content: str) -> Path:
        """A file in the working folder."""
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    def model(self, name: str = "tiny") -> Path:
        """A checkpoint's folder, as small as one can be."""
        self.write(f"{name}/config.json", '{"model_type": "llama"}')
        self.write(f"{name}/tokenizer.json", "{}")
        self.write(f"{name}/tokenizer_config.json", '{"chat_template": "{{ messages }}"}')
        (self.work / name / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
        return self.work / name

    def answers(self, canned: Mapping[str, str]) -> str:
        """An --env for servers that answer so (regular expression → answer)."""
        path = self.write("answers.json", json.dumps(canned))
        return f"VLLM_FAKE_ANSWERS={path}"

    def task(self, items: Iterable[Mapping[str, Any]], *, name: str = "sums", **keys: Any) -> Path:
        """The user's own task: fields `ask` and `right`, scored as a number unless `keys` say."""
        self.write(f"{name}.jsonl", "".join(json.dumps(item) + "\n" for item in items))
        given = {"prompt": "{{ ask }}", "answer": "right", "metric": "number", "max_tokens": 24}
        lines = {"name": name, "data": f"{name}.jsonl"} | given | keys
        return self.write(f"{name}.yaml", json.dumps(lines))

    def start(self, *words: str, **env: str) -> Running:
        """Start `enginehouse WORDS`."""
        return self.start_program([sys.executable, "-m", "enginehouse", *words], **env)

    def start_program(self, argv: Sequence[str], **env: str) -> Running:
        """Start any program in this user's place."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # The tests run as a shell's background job: children would ignore Ctrl-C, too.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        log = self.folder / f"command-{len(self._commands)}"
        running = Running(argv, env=self.env | env, cwd=self.work, log=log, patience=self.patience)
        self._commands.append(running)
        return running

    def run(self, *words: str, **env: str) -> Finished:
        """Run `enginehouse WORDS` to its end."""
        return self.start(*words, **env).end()

    @property
    def runs(self) -> list[Path]:
        """The run folders, the oldest first."""
        return sorted(p for p in (self.home / "state/runs").glob("*") if p.name[0] != ".")

    def processes(self) -> list[psutil.Process]:
        """Every live process that has this folder in its command line or environment."""
        mark, ours = f"{self.folder}/", {os.getpid(), os.getppid()}
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.pid in ours or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if mark in "\0".join([*process.cmdline(), *process.environ().values()]):
                    found.append(process)
        return found

    def nothing_left(self) -> None:
        """Assert that no process, no server record and no live port lease is left.

        A lease whose owner was killed is no lease: it goes when the next one is taken.
        """
        left = self.processes()
        assert not left, [str(process) for process in left]
        state = self.home / "state"
        assert list(state.glob("servers/*/server.json")) == []
        layout = Layout(cache=self.home / "cache", state=state, config=self.home / "config")
        assert [lease for lease in live_leases(layout) if lease.home == str(state)] == []

    def clear(self) -> None:
        """Kill whatever a failing test left behind."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        for running in self._commands:
            running.process.wait()


class SharedServer(NamedTuple):
    """A detached server of `house`: its options, what `serve` said, its name and its URL."""

    house: House
    options: ServerOptions
    said: str
    name: str
    url: str

    @property
    def admin_key(self) -> str:
        """What opens everything, for those who do not share its state folder."""
        return (self.house.home / "state/servers" / self.name / "admin.key").read_text()


def url_of(said: str) -> str:
    """The address in "ready after 0.2 s: http://127.0.0.1:20000"."""
    return re.findall(r"ready after \S+ s: (http://\S+)", said)[-1]


def port_is_free(url: str) -> bool:
    """Whether another server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(url.rpartition(":")[2])))
        except OSError:
            return False
    return True


class Journaled(NamedTuple):
    """How often each sample (task, item, repeat) was journaled and scored; the last outcomes."""

    samples: Counter[tuple[str, str, int]]
    scores: Counter[tuple[str, str, int]]
    outcomes: dict[tuple[str, str, int], str]

    def counts(self) -> dict[str, int]:
        """How many samples have each outcome."""
        return dict(Counter(self.outcomes.values()))


def journaled(run: Path) -> Journaled:
    """What a run's journal holds, read without the ledger."""
    samples: Counter[tuple[str, str, int]] = Counter()
    scores: Counter[tuple[str, str, int]] = Counter()
    outcomes: dict[tuple[str, str, int], str] = {}
    for entry in read_journal(run / "journal.jsonl", Record):
        record = entry.record
        if not isinstance(record, SampleRecord | ScoreRecord):
            continue
        key = (record.task, record.item, record.repeat)
        if isinstance(record, ScoreRecord):
            scores[key] += 1
            outcomes[key] = record.outcome.value
        else:
            samples[key] += 1
            outcomes.pop(key, None)
            if record.failure is not None:
                outcomes[key] = "failed"
    return Journaled(samples, scores, outcomes)


def scored(run: Path) -> int:
    """How many scores the journal holds, looked at quickly."""
    journal = run / "journal.jsonl"
    return journal.read_bytes().count(b'"record":"score"') if journal.exists() else 0


def answered(run: Path) -> int:
    """How many samples the journal holds, scored or not yet, looked at quickly."""
    journal = run / "journal.jsonl"
    return journal.read_bytes().count(b'"record":"sample"') if journal.exists() else 0


def sums(
    *, right: int = 0, wrong: int = 0, unparsable: int = 0, truncated: int = 0, failed: int = 0
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Items and canned answers with that many of each outcome.

    `failed` ones have prompts that do not fit --max-model-len 512: the engine answers 400.
    """
    items: list[dict[str, Any]] = []
    canned: dict[str, str] = {}
    answers = {
        "right": ("It is {n}.", right),
        "wrong": ("It is 100{n}.", wrong),
        "unparsable": ("Nobody knows.", unparsable),
        "truncated": ("It is {n}. " + WORDS * 20, truncated),
        "failed": ("", failed),
    }
    for kind, (answer, count) in answers.items():
        for _ in range(count):
            n = len(items)
            long = WORDS * 600 if kind == "failed" else ""
            items.append({"ask": f"Sum number {n}: what is {n} + 0? {long}", "right": str(n)})
            canned[f"Sum number {n}:"] = answer.format(n=n)
    return items, canned

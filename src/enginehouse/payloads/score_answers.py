"""Score answers with code that is not ours, apart from the process that asks for it.

The first line of standard input is the setup, every further line a request; both are JSON. The
first line of standard output says what was loaded, or why it was refused; every further line is
the result of one request, in any order. The end of standard input ends the program.

Setup: `code` (what scores, see `_LOADERS`), `path` (the module search path), `seconds` (for one
answer), `memory` (bytes on top of what is loaded), `processes` (how many the code may start),
`lanes` (workers at once), `batch` (answers for one worker), `confine` (whether to leave the
network) and `trusted` (whether nothing but the time is limited).

This process loads the code once. Answers are scored in forks of it, each for at most `batch`
answers, so that an answer that takes the scoring over, never ends or kills it costs one fork: the
answer gets an error, the others of the fork are scored by the next one. Nothing that the code
prints goes anywhere.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import functools
import gc
import importlib
import importlib.util
import json
import math
import os
import re
import resource
import selectors
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

Request = dict[str, Any]
Judge = Callable[[Request], dict[str, Any]]
Prepare = Callable[[Request], None]

_LONGEST_RESULT = 1 << 20  # bytes
_LONGEST_ANSWER = 1 << 16  # characters
_LONGEST_ERROR = 2000  # characters
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_CHILDREN = Path("/proc/thread-self/children")


class Loaded(NamedTuple):
    """Scoring code: what judges an answer, what to do before a fork does, and facts about it."""

    judge: Judge
    facts: dict[str, Any]
    prepare: Prepare = lambda _: None


class RefusedError(Exception):
    """The code cannot be used; the text says why."""


class UnusableResultError(Exception):
    """What the code returned cannot be counted; the text says what it did."""


def main() -> None:
    """Load the code, then score until standard input ends."""
    replies = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    lines = Lines(0)
    setup = json.loads(lines.first())
    offline = setup["confine"] and _leave_network()
    _die_with_parent(signal.SIGKILL)  # now, for new credentials would undo it
    _system("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    sys.path[:] = setup["path"]
    warnings.simplefilter("ignore")
    try:
        code = setup["code"]
        loaded = _LOADERS[code["kind"]](code)
        facts = loaded.facts
    except RefusedError as error:
        facts = {"refused": str(error)}
    except BaseException as error:  # noqa: BLE001  whatever somebody else's module raises
        facts = {"refused": f"{type(error).__name__}: {error}"}
    _send(replies, {"offline": offline, **facts})
    if "refused" not in facts:
        gc.collect()
        gc.freeze()  # so that forks share what is loaded
        _die_with_parent(0)  # from here on the end of standard input ends everything in order
        if not setup["trusted"]:
            _close_to_others()
        Scorer(loaded, setup, lines, replies, null).run()


class Lines:
    """Whole lines of a file descriptor."""

    def __init__(self, file: int, *, longest: int | None = None) -> None:
        self._file = file
        self._longest = longest
        self._rest: list[bytes] = []  # the pieces of a line that is not whole yet
        self._size = 0  # of these
        self.ended = False

    def read(self) -> list[bytes]:
        """Those that one read makes whole; blocks only if nothing is there."""
        data = os.read(self._file, 1 << 16)
        self.ended = not data
        *whole, rest = data.split(b"\n")
        if whole:
            whole[0] = b"".join((*self._rest, whole[0]))
            self._rest.clear()
            self._size = 0
        self._rest.append(rest)
        self._size += len(rest)
        if self._longest is not None and self._size > self._longest:
            self.ended = True
        return whole

    def first(self) -> bytes:
        """The first line, and nothing behind it."""
        line = b""
        while not line.endswith(b"\n"):
            if not (byte := os.read(self._file, 1)):
                sys.exit(0)
            line += byte
        return line


class Worker:
    """A fork and the requests that it has not answered yet."""

    def __init__(self, pid: int, results: int, requests: deque[Request]) -> None:
        self.pid = pid
        self.results = results
        self.lines = Lines(results, longest=_LONGEST_RESULT)
        self.requests = requests
        self.started = time.monotonic()
        self.late = False


class Scorer:
    """Hands requests to forks and their results to the parent."""

    def __init__(
        self, loaded: Loaded, setup: dict[str, Any], lines: Lines, replies: int, null: int
    ) -> None:
        self._loaded = loaded
        self._setup = setup
        self._requests = lines
        self._replies = replies
        self._null = null
        self._queue: deque[Request] = deque()
        self._workers: dict[int, Worker] = {}  # by the pipe of their results
        self._again: set[int] = set()  # requests that have been given a second fork
        self._selector = selectors.DefaultSelector()
        self._selector.register(0, selectors.EVENT_READ)

    def run(self) -> None:
        """Until standard input ends; what is at work then is killed."""
        try:
            while not self._requests.ended:
                self._start_workers()
                for key, _ in self._selector.select(self._patience()):
                    if key.fd == 0:
                        self._queue += map(json.loads, self._requests.read())
                    else:
                        self._hear(self._workers[key.fd])
                for worker in list(self._workers.values()):
                    if time.monotonic() - worker.started > self._setup["seconds"]:
                        worker.late = True
                        self._end(worker)
        finally:
            for worker in self._workers.values():
                _kill(worker.pid)
                _reap(worker.pid)
            self._workers.clear()
            self._kill_strays()

    def _patience(self) -> float | None:
        if not self._workers:
            return None
        oldest = min(worker.started for worker in self._workers.values())
        return max(0.0, oldest + self._setup["seconds"] - time.monotonic() + 0.01)

    def _start_workers(self) -> None:
        while self._queue and (free := self._setup["lanes"] - len(self._workers)) > 0:
            share = -(-len(self._queue) // free)
            count = min(share, self._setup["batch"])
            requests = deque(self._queue.popleft() for _ in range(count))
            for request in requests:
                self._loaded.prepare(request)
            results, write = os.pipe()
            if (pid := os.fork()) == 0:
                self._work(requests, write)
            os.close(write)
            self._workers[results] = Worker(pid, results, requests)
            self._selector.register(results, selectors.EVENT_READ)

    def _work(self, requests: deque[Request], write: int) -> NoReturn:
        """In the fork: score, and end."""
        try:
            _die_with_parent(signal.SIGKILL)
            os.setsid()
            os.dup2(self._null, 0)
            self._selector.close()
            for file in (self._replies, *self._workers):
                os.close(file)
            _limit(self._setup, answers=len(requests))
            ours = os.getpid()
            for request in requests:
                result = _judged(self._loaded.judge, request)
                if os.getpid() != ours:  # the code has forked, and this is its child
                    break
                _send(write, result)
        finally:
            os._exit(0)

    def _hear(self, worker: Worker) -> None:
        for line in worker.lines.read():
            if not worker.requests:
                break
            request = worker.requests.popleft()
            worker.started = time.monotonic()
            _send(self._replies, {"id": request["id"], **_result(line)})
        if worker.lines.ended or not worker.requests:
            self._end(worker)

    def _end(self, worker: Worker) -> None:
        """See the fork gone. The request that it did not answer gets an error, others go back.

        A killed one is tried a second time first.
        """
        self._selector.unregister(worker.results)
        os.close(worker.results)
        del self._workers[worker.results]
        _kill(worker.pid)  # it may have closed the pipe and live on
        status = os.waitstatus_to_exitcode(_reap(worker.pid))
        self._kill_strays()
        if worker.requests:
            request = worker.requests.popleft()
            if status == -signal.SIGKILL and not worker.late and request["id"] not in self._again:
                self._again.add(request["id"])  # another answer's code may have killed this fork
                self._queue.append(request)
            else:
                _send(self._replies, {"id": request["id"], **self._obituary(worker, status)})
            self._queue.extendleft(reversed(worker.requests))

    def _obituary(self, worker: Worker, status: int) -> dict[str, Any]:
        if worker.late or status == -signal.SIGXCPU:
            limit = f"did not end within {self._setup['seconds']:g} s"
            return {"error": limit, "timed_out": True}
        if status < 0:
            with contextlib.suppress(ValueError):
                return {"error": f"was ended by {signal.Signals(-status).name}"}
        return {"error": f"ended its process with status {status}"}

    def _kill_strays(self) -> None:
        """Processes that a fork left behind have become children of this one."""
        known = {worker.pid for worker in self._workers.values()}
        with contextlib.suppress(OSError):
            while strays := {int(pid) for pid in _CHILDREN.read_text().split()} - known:
                for pid in strays:
                    _kill(pid)
                    _reap(pid)


def _result(line: bytes) -> dict[str, Any]:
    """A fork's line as the parent expects it; an error if it is anything else.

    The line is not trusted: code that has taken the fork over may have written it.
    """
    with contextlib.suppress(ValueError, RecursionError):  # UnicodeError is a ValueError
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode()  # no half characters
        if isinstance(value, dict) and _is_result(**value):
            return value
    return {"error": "gave a result that cannot be read"}


def _is_result(
    *,
    correct: Any = None,
    measures: Any = None,
    answer: Any = None,
    error: Any = None,
    **others: Any,
) -> bool:
    numbers = [] if correct is None else [correct]
    if measures is not None:
        if not isinstance(measures, dict):
            return False
        numbers += measures.values()
    texts = all(isinstance(text, str | None) for text in (answer, error))
    return not others and texts and all(type(n) is float and math.isfinite(n) for n in numbers)


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(pid, signal.SIGKILL)


def _reap(pid: int) -> int:
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, 0)[1]
    return 0


def _send(file: int, value: dict[str, Any]) -> None:
    data = json.dumps(value).encode() + b"\n"
    while data:
        data = data[os.write(file, data) :]


def _system(name: str, *arguments: int) -> bool:
    """Call a function of the C library; false if it fails or there is none of that name."""
    try:
        return getattr(ctypes.CDLL(None), name)(*arguments) == 0
    except (OSError, AttributeError):
        return False


def _die_with_parent(number: int) -> None:
    """Get this signal when the parent ends; 0 for none."""
    _system("prctl", _PR_SET_PDEATHSIG, number, 0, 0, 0)


def _close_to_others() -> None:
    """Keep forks from reading or writing this process, its files and those of one another.

    Processes of one user may otherwise reach one another through ptrace and /proc.
    """
    _system("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def _leave_network() -> bool:
    """Go into a network without a way out, where the kernel lets this user."""
    return _system("unshare", _CLONE_NEWUSER | _CLONE_NEWNET) or _system("unshare", _CLONE_NEWNET)


def _limit(setup: dict[str, Any], *, answers: int) -> None:
    if setup["trusted"]:
        return
    _set_limit(resource.RLIMIT_DATA, _memory("VmData:") + setup["memory"])
    # Shared memory counts here only. Threads reserve address space that they do not use.
    _set_limit(resource.RLIMIT_AS, _memory("VmSize:") + 2 * setup["memory"])
    _set_limit(resource.RLIMIT_CPU, math.ceil(setup["seconds"] * answers) + 1)
    _set_limit(resource.RLIMIT_CORE, 0)
    _set_limit(resource.RLIMIT_FSIZE, 0)
    _set_limit(resource.RLIMIT_NPROC, setup["processes"])


def _set_limit(kind: int, value: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # a lower limit is there already
        resource.setrlimit(kind, (value, value))


def _memory(kind: str) -> int:
    """Bytes of this process, as /proc/self/status counts them."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(kind):
                return int(line.split()[1]) * 1024
    return 1 << 30


def _judged(judge: Judge, request: Request) -> dict[str, Any]:
    """The result of one request as JSON: a verdict, or an error."""
    try:
        return {"error": None, **judge(request)}
    except MemoryError:
        return {"error": "needed more memory than it may have"}
    except UnusableResultError as error:
        return {"error": _cut(str(error))}
    except BaseException as error:  # noqa: BLE001  SystemExit, too, is an error of the code
        return {"error": _cut(f"raised {type(error).__name__}: {error}")}


def _cut(text: str) -> str:
    """The beginning of a text; half characters, which JSON cannot carry, as escapes."""
    return text[:_LONGEST_ERROR].encode(errors="backslashreplace").decode()


def _load_metric(code: dict[str, Any]) -> Loaded:
    """A user's function of (text, item). Facts: the source of its module, in base64."""
    module = _import(code["module"], folder=code["folder"])
    function = getattr(module, code["function"])
    if not callable(function):
        raise RefusedError("it is not a function")
    file = getattr(module, "__file__", None)
    source = Path(file).read_bytes() if file else b""

    def judge(request: Request) -> dict[str, Any]:
        return _verdict(function(request["text"], request["item"]))

    return Loaded(judge, {"source": base64.b64encode(source).decode()})


def _import(name: str, *, folder: str) -> ModuleType:
    """A module beside the task's file comes before an installed one."""
    sys.path.insert(0, folder)  # so that it may import its neighbours
    file = Path(folder).joinpath(*name.split(".")).with_suffix(".py")
    if not file.is_file():
        sys.path.remove(folder)
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(f"enginehouse_metric_{name}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _verdict(result: Any) -> dict[str, Any]:
    """What a user's function returned, as JSON. Raises UnusableResultError."""
    measures = {}
    if hasattr(result, "keys"):
        if "correct" not in result:
            raise UnusableResultError("returned a mapping without 'correct'")
        measures = {str(name): result[name] for name in result if name != "correct"}
        result = result["correct"]
    elif not isinstance(result, bool) and result is not None:
        measures = {"score": result}
    numbers = {name: _number(value) for name, value in measures.items()}
    for name, number in numbers.items():
        if number is None:
            what = f"{measures[name]!r} for {name!r}"
            raise UnusableResultError(f"returned {what}, which is not a finite number")
    correct = None if result is None else _number(result)
    if result is not None and (correct is None or not 0 <= correct <= 1):
        what = "which is neither a bool nor a number from 0 to 1"
        raise UnusableResultError(f"returned {result!r}, {what}")
    return {"correct": correct, "measures": numbers}


def _number(value: Any) -> float | None:
    value = value.item() if hasattr(value, "item") else value  # NumPy's scalars
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _load_pattern(code: dict[str, Any]) -> Loaded:
    """A regular expression: the last match's first group that took part is the answer."""
    try:
        pattern = re.compile(code["pattern"])
    except re.error as error:
        raise RefusedError(str(error)) from error

    def judge(request: Request) -> dict[str, Any]:
        matches = list(pattern.finditer(request["text"]))
        if not matches:
            return {"correct": None}
        groups = [group for group in matches[-1].groups() if group is not None]
        found = (groups or [matches[-1][0]])[0].strip()
        return {
            "correct": float(found == request["answer"].strip()),
            "answer": found[:_LONGEST_ANSWER],
        }

    return Loaded(judge, {})


def _load_reasoning_gym(code: dict[str, Any]) -> Loaded:
    """The data sets of reasoning_gym. Facts: all names, and the questions of the one in `items`.

    PYTHONHASHSEED must be 0: some of the generators walk over sets, so that their questions depend
    on the process's hash seed (seen: isomorphic_strings, knight_swap, polynomial_multiplication,
    ransom_note, word_ladder). Entries stay here, because scorers want tuples that JSON would turn
    into lists.
    """
    import reasoning_gym

    @functools.cache
    def data_set(name: str) -> Any:
        return reasoning_gym.create_dataset(name, seed=code["seed"], size=code["size"])

    def judge(request: Request) -> dict[str, Any]:
        scorer = data_set(request["name"])
        entry = scorer[request["index"]]
        if entry["question"] != request["question"]:
            raise UnusableResultError("generated another question than the one that was asked")
        try:
            value = float(scorer.score_answer(request["answer"], entry))
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  some scorers raise on answers that they cannot read
            return {"correct": None, "measures": {"score": 0.0}}
        return {"correct": value, "measures": {"score": value}}

    facts: dict[str, Any] = {"names": sorted(reasoning_gym.factory.DATASETS)}
    if (name := code["items"]) is not None:
        generated = data_set(name)
        entries = [generated[index] for index in range(code["size"])]
        facts["items"] = [{key: e[key] for key in ("question", "answer")} for e in entries]
    return Loaded(judge, facts, prepare=lambda request: data_set(request["name"]))


_LOADERS = {
    "metric": _load_metric,
    "pattern": _load_pattern,
    "reasoning_gym": _load_reasoning_gym,
}

if __name__ == "__main__":
    main()

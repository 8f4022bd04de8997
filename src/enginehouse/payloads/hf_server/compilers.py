"""Compiles constraints in processes of their own, so that a bad one cannot harm the server.

Some grammars take minutes or gigabytes to compile, or for a single step, and that cannot be seen in
advance. So each is compiled, and tried for a few tokens, in a process that the kernel ends after
LIMIT seconds of CPU or MEMORY more bytes than it started with. It is a fork of a process that has
everything imported, which must itself be forked before torch has made threads.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import xgrammar

from hf_server.errors import ApiError, refused
from hf_server.requests import Constraint

LIMIT = 10  # seconds of CPU
PATIENCE = 40.0  # seconds, on a busy machine
MEMORY = 2 << 30  # bytes
TRIAL = 64  # tokens
_LARGEST = 64 << 20  # bytes of a compiled grammar
_GRAMMAR, _REASON = b"grammar ", b"reason "  # how an answer begins
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class Compilers:
    """Forks off the process that all compilers are forks of; it ends when this one does."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            _run(lambda: _Nursery(theirs).serve(), parent=parent)
        theirs.close()
        self._nursery = ours

    def know(self, tokenizer: xgrammar.TokenizerInfo) -> None:
        """Compile for this vocabulary from now on. Blocking."""
        if self._ask("vocabulary", tokenizer.serialize_json()) != b"known":
            raise _ended()

    def compile(self, constraint: Constraint) -> str:
        """The grammar, as xgrammar serialises it. Blocking; safe across threads.

        Raises ApiError (400) for a constraint that is wrong, or takes more than it may.
        """
        param = "response_format" if constraint.kind == "json" else "structured_outputs"
        answer = self._ask(constraint.kind, constraint.text)
        if answer.startswith(_GRAMMAR) and len(answer) <= _LARGEST:
            return answer.removeprefix(_GRAMMAR).decode()
        reason = "it is too large, or takes more time or memory than an answer may"
        if answer.startswith(_REASON):
            reason = answer.removeprefix(_REASON).decode()
        raise refused(f"the {constraint.kind} constraint cannot be used: {reason}", param=param)

    def close(self) -> None:
        """End the processes. Idempotent."""
        self._nursery.close()

    def _ask(self, kind: str, text: str) -> bytes:
        """The answer of a process of its own; empty if the process was ended."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                try:
                    socket.send_fds(self._nursery, [b"x"], [theirs.fileno()])
                except OSError as error:
                    raise _ended() from error
            ours.settimeout(PATIENCE)
            try:
                ours.sendall(json.dumps([kind, text]).encode() + b"\n")
                ours.shutdown(socket.SHUT_WR)
                return _read(ours)
            except (TimeoutError, BrokenPipeError, ConnectionResetError):
                return b""


def _ended() -> ApiError:
    return ApiError(503, "constraints can no longer be compiled: restart the server")


class _Nursery:
    """The process that all compilers are forks of."""

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._tokenizer: xgrammar.TokenizerInfo | None = None

    def serve(self) -> None:
        """Until the server closes its end."""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps ended children
        me = os.getpid()
        while True:
            word, files, _, _ = socket.recv_fds(self._orders, 1, 1)
            if not word:
                return
            with socket.socket(fileno=files[0]) as line:
                kind, text = json.loads(_read(line))
                if kind == "vocabulary":
                    self._tokenizer = xgrammar.TokenizerInfo.deserialize_json(text)
                    line.sendall(b"known")
                elif os.fork() == 0:
                    self._orders.close()
                    _run(lambda: line.sendall(self._answer(kind, text)), parent=me)  # noqa: B023

    def _answer(self, kind: str, text: str) -> bytes:
        _limit()
        compiler = xgrammar.GrammarCompiler(self._tokenizer, max_threads=1)
        try:
            compiled = _compiled(compiler, kind, text)
            _try(compiled, self._tokenizer)
        except (RuntimeError, ValueError, TypeError) as error:
            last = " ".join(str(error).strip().splitlines()[-1:])
            return _REASON + last.encode(errors="replace")
        return _GRAMMAR + str(compiled.serialize_json()).encode()


def _compiled(compiler: xgrammar.GrammarCompiler, kind: str, text: str) -> xgrammar.CompiledGrammar:
    if kind == "json":
        # White space is where a small model under a schema loops until max_tokens.
        return compiler.compile_json_schema(text, any_whitespace=False)
    if kind == "regex":
        return compiler.compile_regex(text)
    if kind == "choice":
        # A JSON string is a literal of xgrammar's EBNF, too, but for escaped surrogates.
        texts = [json.dumps(choice, ensure_ascii=False) for choice in json.loads(text)]
        return compiler.compile_grammar(f"root ::= {' | '.join(texts)}")
    return compiler.compile_grammar(text)


def _try(compiled: xgrammar.CompiledGrammar, tokenizer: xgrammar.TokenizerInfo) -> None:
    """Walk through an answer: some grammars compile quickly and hang at their tokens."""
    matcher = xgrammar.GrammarMatcher(compiled)
    bitmask = xgrammar.allocate_token_bitmask(1, tokenizer.vocab_size)
    drawn = np.random.default_rng(0)
    for _ in range(TRIAL):
        matcher.fill_next_token_bitmask(bitmask, 0)
        bits = np.unpackbits(bitmask[0].numpy().view(np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits[: tokenizer.vocab_size])
        going_on = np.setdiff1d(allowed, tokenizer.stop_token_ids)
        if not len(going_on) or not matcher.accept_token(int(drawn.choice(going_on))):
            return


def _limit() -> None:
    """Let the kernel end this process when it exceeds its limits, and lower its priority."""
    os.nice(5)
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def _read(line: socket.socket) -> bytes:
    parts = []
    while part := line.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def _run(work: Any, *, parent: int) -> None:
    """Do the work in this fork and end it, without what would run at the server's own end."""
    code = 1
    try:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
        if os.getppid() == parent:
            work()
            code = 0
    except BaseException as error:  # noqa: BLE001 - this process has no caller
        sys.stderr.write(f"hf_server: a compiler of constraints ended: {error!r}\n")
        sys.stderr.flush()
    finally:
        os._exit(code)

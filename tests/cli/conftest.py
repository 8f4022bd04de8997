"""A user's machine with the fake engine in it, and the command line in this process."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable

import pytest
from tests.support.command_line import Finished, House


@pytest.fixture
def call(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Finished]:
    """The command line in this process: like `house.run`, without the time to start Python.

    For everything but signals, kills, terminals and closed streams; `stdin` is what it reads.
    """

    def run(*words: str, stdin: str = "", **env: str) -> Finished:
        from enginehouse.__main__ import main

        with monkeypatch.context() as patch:
            for name, value in {**house.env, **env}.items():
                patch.setenv(name, value)
            patch.chdir(house.work)
            patch.setattr(sys, "argv", ["enginehouse", *words])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
            capsys.readouterr()
            code: object = 0
            handler = signal.getsignal(signal.SIGINT)
            try:
                main()
            except SystemExit as exit_:
                code = exit_.code
            finally:
                signal.signal(signal.SIGINT, handler)
            out, err = capsys.readouterr()
        return Finished(code if isinstance(code, int) else 0, out, err)

    return run

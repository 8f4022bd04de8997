"""A user's machine with the fake engine in it, and the command line in this process."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parent / "support"
if str(SUPPORT) not in sys.path:
    sys.path.append(str(SUPPORT))

from command_line import Finished, House  # noqa: E402

from enginehouse.testing.fake_environment import make_fake_environment  # noqa: E402


@pytest.fixture(scope="session")
def fake_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment whose vLLM is the fake engine."""
    return make_fake_environment(tmp_path_factory.mktemp("environment") / "vllm")


@pytest.fixture
def house(tmp_path: Path, fake_python: Path) -> Iterator[House]:
    """A machine of this test's own; whatever the test left running is an error."""
    house = House(tmp_path / "house", python=fake_python)
    try:
        yield house
        house.nothing_left()
    finally:
        house.clear()


@pytest.fixture
def call(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Finished]:
    """The command line in this process: as `house.run`, without the time that Python needs."""

    def run(*words: str, **env: str) -> Finished:
        from enginehouse.__main__ import main

        with monkeypatch.context() as patch:
            for name, value in {**house.env, **env}.items():
                patch.setenv(name, value)
            patch.chdir(house.work)
            patch.setattr(sys, "argv", ["enginehouse", *words])
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

"""`enginehouse tinker serve` as its users have it, and their programs with the real SDK."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.support import SUPPORT
from tests.support.command_line import Finished, House, Running, until

# vLLM's CPU build copies each token's share of the adapters' places: ranks cost by their limit.
LIMITS = ("--max-model-len", "1024", "--max-lora-rank", "8", "--max-loras", "4")
_PROGRAMS = SUPPORT / "tinker_programs"
_SETTLED = 60.0  # seconds until a killed service's processes are gone
# What tells the service's own processes apart, in their command lines.
_PARTS = {"trainer": "payloads/trainer", "vllm": "vllm"}


class TinkerService:
    """A service in a house of its own; it is started again on the same port, with the same home.

    `sdk` is the interpreter of the SDK's environment. Users are named, and get their keys here.
    """

    def __init__(self, house: House, *, sdk: Path, model: Path, words: Sequence[str]) -> None:
        self._house = house
        self._sdk = sdk
        self._words = words
        self._keys: dict[str, str] = {}
        self._port: str | None = None
        self.model = str(model)
        self.running: Running

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def home(self) -> Path:
        """The folder of its records, journal and checkpoints."""
        return self._house.home / "state" / "tinker"

    def start(self) -> None:
        """Start it, or start it again, and wait until it answers."""
        port = ("--port", self._port) if self._port else ()
        words = ("tinker", "serve", "--base-model", self.model, *port, *self._words)
        self.running = self._house.start(*words)
        said = self.running.until("ready: http://")
        self._port = said.partition("ready: http://127.0.0.1:")[2].split()[0].rstrip("/")

    def stop(self) -> Finished:
        """SIGTERM, after which it finishes what runs, and leaves nothing."""
        self.running.interrupt(signal.SIGTERM)
        return self.running.end()

    def key(self, user: str = "ada") -> str:
        """A user's API key, made when it is first asked for."""
        if user not in self._keys:
            made = self._house.run("tinker", "keys", "add", user)
            assert made.code == 0, made.err
            (self._keys[user],) = (word for word in made.out.split() if word.startswith("tml-"))
        return self._keys[user]

    def environment(self, *, user: str = "ada", url: str | None = None) -> dict[str, str]:
        """What a user's program is told: where the service is, and the user's key."""
        return {
            "TINKER_BASE_URL": url or self.url,
            "TINKER_API_KEY": self.key(user),
            "TINKER_TELEMETRY": "0",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": "",
            "PYTHONUNBUFFERED": "1",
            "PATH": f"{self._sdk.parent}{os.pathsep}{os.environ['PATH']}",
        }

    def begin(self, argv: Sequence[str], *, user: str = "ada", url: str | None = None) -> Running:
        """Start a program of the SDK's environment, such as `tinker` or `python`."""
        return self._house.start_program(
            [str(self._sdk.parent / argv[0]), *argv[1:]], **self.environment(user=user, url=url)
        )

    def begin_program(
        self, name: str, *, user: str = "ada", url: str | None = None, **arguments: Any
    ) -> Running:
        """Start one of tests/support/tinker_programs with this service's model."""
        given = json.dumps({"model": self.model, **arguments})
        return self.begin(["python", str(_PROGRAMS / f"{name}.py"), given], user=user, url=url)

    def run_program(self, name: str, **arguments: Any) -> Any:
        """Run one of those programs to its end, and give its last answer."""
        return answers(self.begin_program(name, **arguments).end())[-1]

    def status(self) -> Any:
        """What it tells its operator."""
        headers = {"x-operator-key": (self.home / "operator-key").read_text()}
        request = urllib.request.Request(f"{self.url}/status", headers=headers)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)

    def log(self) -> str:
        """What the service has logged: a JSON object on each line."""
        return (self.home / "service.jsonl").read_text()

    def process(self, part: str) -> psutil.Process:
        """The topmost process of the service's "trainer", or of its "vllm"."""
        for child in psutil.Process(self.running.pid).children(recursive=True):
            with suppress(psutil.Error):
                if _PARTS[part] in " ".join(child.cmdline()):
                    return child
        raise AssertionError(f"no {part} is running")

    @property
    def vllm(self) -> tuple[str, str]:
        """The address and the administrative key of its vLLM, for plain requests."""
        address: str = self.status()["sampling"]["url"]
        for record in (self._house.home / "state" / "servers").glob("*/server.json"):
            if json.loads(record.read_text())["base_url"] == address:
                return address, record.with_name("admin.key").read_text()
        raise AssertionError(f"no server of {address} is recorded")

    def kill(self, part: str) -> None:
        """Kill -9 of "service", "trainer" or "vllm"; a killed service is started again."""
        if part != "service":
            self.process(part).kill()
            return
        children = psutil.Process(self.running.pid).children(recursive=True)
        self.running.kill()
        until(
            lambda: not [c for c in children if c.is_running() and c.status() != "zombie"],
            lambda: f"left by the killed service: {children}",
            patience=_SETTLED,
        )
        self._house.run("ps")  # forgets the record of a vLLM whose service is dead
        self.start()


def answers(finished: Finished) -> list[Mapping[str, Any]]:
    """The JSON objects that a program printed, after it ended well."""
    assert finished.code == 0, finished.err[-4000:]
    return [json.loads(line) for line in finished.out.splitlines() if line.startswith("{")]

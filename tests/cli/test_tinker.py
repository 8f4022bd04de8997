"""enginehouse tinker: a service with stand-ins, its keys and its state."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.command_line import House

from enginehouse.cli.tinker import _EXTRA
from enginehouse.testing.fake_megatron_trainer import FakeMegatronTrainer
from enginehouse.testing.fake_trainer import FakeTrainer

WITHOUT_THE_EXTRA = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sqlalchemy":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv = ["enginehouse", *sys.argv[1:]]
from enginehouse.__main__ import main
main()
"""


@pytest.fixture
def megatron() -> Iterator[str]:
    """The address of a stand-in for a Megatron server that trains."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = FakeMegatronTrainer(FakeTrainer(base_model="tiny")).serving()
    try:
        yield asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def post(url: str, body: dict[str, Any], *, key: str = "tml-none") -> Any:
    """The answer to a POST."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"X-API-Key": key}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.loads(reply.read())


@pytest.mark.slow
def test_a_service_from_its_start_to_its_end(house: House, megatron: str):
    """It says where it is; keys count at once; the state is told; SIGTERM leaves nothing."""
    house.model()
    running = house.start(
        "tinker", "serve", "--base-model", "tiny", "--trainer", "megatron", "--no-train-unembed",
        USE_VLLM="true", MEGATRON_SERVER_URL=megatron,
    )  # fmt: skip
    said = running.until("stop:  Ctrl-C")
    url = re.findall(r"^ready: (http://127\.0\.0\.1:\d+)$", said, re.MULTILINE)[0]
    session = {"tags": [], "sdk_version": "0.38.0"}
    assert "session_id" in post(f"{url}/api/v1/create_session", session)

    key = house.run("tinker", "keys", "add", "ada", "--json").report["key"]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        post(f"{url}/api/v1/create_session", session)
    answer = post(f"{url}/api/v1/create_session", session, key=key)
    assert "does not train the output layer" in answer["info_message"]
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    assert post(f"{url}/v1/chat/completions", chat, key=key)["choices"]

    table = house.run("tinker", "status")
    assert table.code == 0, table.err
    assert table.out.startswith("tiny: trainer ready, 2 sessions")
    assert "note: this service does not train the output layer" in table.out
    status = house.run("tinker", "status", "--url", url, "--json").report
    assert (status["base_model"], status["draining"]) == ("tiny", False)

    running.interrupt(signal.SIGTERM)
    done = running.end()
    assert done.code == 143
    assert "sampler is vllm, because USE_VLLM is true" in done.err
    assert "stopping: what runs is finished" in done.err
    house.nothing_left()
    assert house.run("tinker", "status").code == 2


def test_keys_are_made_listed_and_revoked(call):
    """They are shown once; the list has what they begin with, hashed."""
    made = call("tinker", "keys", "add", "ada", "--note", "laptop")
    assert made.code == 0
    (key,) = made.out.split()
    assert key.startswith("tml-")
    (listed,) = call("tinker", "keys", "list", "--json").report
    assert listed["place"].endswith("keys.json")
    listed = listed["key"]
    assert (listed["user"], listed["note"]) == ("ada", "laptop")
    assert key not in json.dumps(listed)
    table = call("tinker", "keys", "list").out
    assert listed["sha256"][:8] in table
    revoked = call("tinker", "keys", "revoke", listed["sha256"][:8])
    assert revoked.out == f"revoked {listed['sha256'][:8]} of ada\n"
    assert call("tinker", "keys", "list", "--json").report == []
    assert call("tinker", "keys", "revoke", "12345678").code == 2
    assert call("tinker", "keys", "add", "a b").code == 2


def test_without_a_service_the_state_says_how_to_start_one(call):
    """And nothing is looked for in vain."""
    done = call("tinker", "status")
    assert done.code == 2
    assert "enginehouse tinker serve" in done.err


def test_a_service_that_does_not_answer(call, house: House):
    """Killed, for instance: its address is still there."""
    home = house.home / "state/tinker"
    home.mkdir(parents=True)
    (home / "address").write_text("http://127.0.0.1:9")
    (home / "operator-key").write_text("k")
    done = call("tinker", "status")
    assert done.code == 6
    assert "http://127.0.0.1:9 does not answer" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("words", [("status",), ("serve", "--base-model", "m")])
def test_without_the_extra_it_says_what_to_install(words: tuple[str, ...]):
    """Instead of a traceback."""
    argv = [sys.executable, "-c", WITHOUT_THE_EXTRA, "tinker", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'enginehouse[tinker]'" in done.stderr
    assert "there is no module sqlalchemy" in done.stderr
    assert "sqlalchemy" in _EXTRA


def test_what_a_megatron_server_is_needed_for(call):
    """Nothing is started without one."""
    done = call("tinker", "serve", "--base-model", "m", "--trainer", "megatron")
    assert done.code == 2
    assert "MEGATRON_SERVER_URL" in done.err

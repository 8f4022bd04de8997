"""`enginehouse arena serve`: a scene's connection to a model, from its start to Ctrl-C."""

from __future__ import annotations

import json
import re
import signal
import socket
import urllib.request
from typing import Any

import pytest
from tests.support.command_line import House, port_is_free


def send(url: str, body: Any = None) -> Any:
    """GET, or POST a body as a scene does."""
    request = urllib.request.Request(
        url,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.loads(reply.read())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_scene_is_answered_until_a_signal(house: House, number: signal.Signals):
    """On a free port of 127.0.0.1, by a model that was started for it; nothing is left."""
    arena = house.start("arena", "serve", str(house.model()))
    said = arena.until("stop: Ctrl-C")
    (url,) = re.findall(r"^url: +(http://127\.0\.0\.1:\d+)$", said, re.MULTILINE)
    assert send(f"{url}/health")["status"] == "ok"
    observation = {"agent_id": "forager", "tick": 1, "position": [0, 0, 0]}
    action = send(f"{url}/observe", observation)
    assert action["agent_id"] == "forager"
    assert action["tool"] in ("move_to", "collect", "craft_item", "idle")
    arena.interrupt(number)
    assert arena.end().code == 128 + number
    assert port_is_free(url)
    house.nothing_left()


@pytest.mark.slow
def test_a_taken_port_is_refused_before_the_model_starts(house: House):
    """With the option to change."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = house.run("arena", "serve", str(house.model()), "--arena-port", port)
    assert done.code == 5
    assert "--arena-port" in done.err
    assert not list((house.home / "state/servers").glob("*"))


@pytest.mark.slow
def test_json(house: House):
    """The address, for a program that starts scenes."""
    arena = house.start("arena", "serve", str(house.model()), "--json")
    said = arena.until("}")
    url = json.loads(said[said.index("{") : said.index("}") + 1])["url"]
    assert send(f"{url}/health")["agents"] == 0
    arena.interrupt()
    assert arena.end().code == 130

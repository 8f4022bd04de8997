"""`enginehouse gateway` until it is stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tests.support.command_line import House, port_is_free
from tests.support.tiny_adapters import BASE, write_adapter
from tests.support.tiny_checkpoints import write_checkpoint


def ask(url: str, *, key: str | None = None, model: str = "tiny") -> dict[str, object]:
    """A completion."""
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    body = json.dumps({"model": model, "prompt": "the capital"}).encode()
    request = urllib.request.Request(f"{url}/completions", body, headers)
    with urllib.request.urlopen(request) as reply:
        found: dict[str, object] = json.load(reply)
        return found


@pytest.mark.slow
def test_until_ctrl_c_whatever_happens_to_the_engine(house: House) -> None:
    """It says how to use it; a killed engine is started again under it; Ctrl-C ends both."""
    house.model()
    running = house.start("gateway", "tiny", "--env", house.answers({"capital": "Paris."}))
    said = running.until("stop:   Ctrl-C")
    url = re.findall(r"^url: +(http://127\.0\.0\.1:\d+/v1)$", said, re.MULTILINE)[0]
    assert f"export OPENAI_BASE_URL={url}" in said
    assert ask(url)["choices"][0]["text"] == "Paris."  # type: ignore[index]
    (engine,) = house.run("ps", "--json").report
    os.kill(engine["record"]["process"]["pid"], signal.SIGKILL)
    assert ask(url)["choices"][0]["text"] == "Paris."  # type: ignore[index]
    running.interrupt()
    assert running.end().code == 130
    house.nothing_left()
    assert port_is_free(url.removesuffix("/v1"))


@pytest.mark.slow
def test_the_key_is_asked_and_never_shown(house: House) -> None:
    """From the environment, for the gateway and the engine behind it."""
    house.model()
    running = house.start("gateway", "tiny", "--json", ENGINEHOUSE_API_KEY="k3y")
    said = running.until("}")
    facts = json.loads(said[: said.index("}") + 1])
    assert facts["needs_key"] is True
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        ask(f"{facts['url']}/v1")
    refused.value.close()
    assert ask(f"{facts['url']}/v1", key="k3y")["model"] == "tiny"
    running.interrupt()
    done = running.end()
    assert "k3y" not in done.out + done.err
    files = [file for file in house.home.rglob("*") if file.is_file()]
    assert not [file for file in files if "k3y" in file.read_text(errors="replace")]


def test_beyond_loopback_a_key_is_needed_before_anything_starts(house: House, call) -> None:
    """As for `serve`."""
    house.model()
    done = call("gateway", "tiny", "--host", "0.0.0.0")
    assert done.code == 2
    assert "API key" in done.err
    house.nothing_left()


@pytest.mark.slow
def test_adapters_and_a_journal(house: House, tmp_path: Path) -> None:
    """A request names an adapter; a gateway that was killed goes on with what it had answered."""
    write_checkpoint(house.work / "tiny", shapes=dict(BASE))
    write_adapter(tmp_path / "adapters" / "mine")
    (tmp_path / "adapters" / "broken").mkdir()
    (tmp_path / "adapters" / "broken" / "adapter_config.json").write_text("{")
    words = ["gateway", "tiny", "--adapters", str(tmp_path / "adapters")]
    words += ["--record", str(tmp_path / "journal"), "--resume"]

    def answers() -> list[object]:
        running = house.start(*words)
        said = running.until("stop:   Ctrl-C")
        url = re.findall(r"^url: +(http://127\.0\.0\.1:\d+/v1)$", said, re.MULTILINE)[0]
        given = [ask(url), ask(url), ask(url, model="mine")]
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(url, model="broken")
        assert refused.value.code == 400
        refused.value.close()
        running.interrupt()
        running.end()
        return [(one["id"], one["choices"]) for one in given]

    first = answers()
    assert len({json.dumps(one) for one in first}) == 3
    assert answers() == first
    house.nothing_left()


def test_nothing_is_replayed_without_a_journal(house: House) -> None:
    """It is said before anything is started."""
    house.model()
    refused = house.run("gateway", "tiny", "--replay")
    assert refused.code == 2
    assert "give the folder to record" in refused.err

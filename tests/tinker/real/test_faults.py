"""Kills, lost answers, floods, a disk that refuses: nothing is lost, and nothing applied twice."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.support.command_line import House, until
from tests.support.dropping_proxy import DroppingProxy
from tests.support.tinker_service import TinkerService, answers

pytestmark = pytest.mark.engine

LOSABLE = ("/api/v1/forward_backward", "/api/v1/optim_step")
STEPS = 6


class Loop(NamedTuple):
    """What a training loop said, and the weights at its end."""

    said: Sequence[Mapping[str, Any]]
    weights: Mapping[str, np.ndarray]

    @property
    def samples(self) -> list[list[int]]:
        """The tokens that were sampled, from snapshot to snapshot."""
        return [row["sampled"] for row in self.said if "sampled" in row]


def undisturbed_loop(service: TinkerService, folder: Path, *, steps: int) -> Loop:
    """A loop during which nothing happens; it samples after every second step."""
    file = folder / "undisturbed.safetensors"
    loop = service.begin_program("steady", steps=steps, sampled_every=2, download=str(file))
    return Loop(answers(loop.end()), load_file(file))


@pytest.fixture(scope="module")
def undisturbed(service: TinkerService, tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """The loop that the disturbed ones are compared with."""
    return undisturbed_loop(service, tmp_path_factory.mktemp("undisturbed"), steps=STEPS)


def assert_equal(weights: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """The same tensors, up to the rounding of sums in another order."""
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(weights[name], tensor, rtol=0, atol=1e-6, err_msg=name)


def killed_loop(
    service: TinkerService, folder: Path, *, parts: Sequence[str], rng: random.Random
) -> Loop:
    """A loop of two steps for each of the parts, which are killed one after the other.

    Each is killed when the journal of requests has grown by a few lines after a step, so that
    requests are waiting, being computed, or just answered.
    """
    file = folder / "disturbed.safetensors"
    loop = service.begin_program(
        "steady", steps=2 * len(parts), sampled_every=2, download=str(file)
    )
    journal = service.home / "futures" / "journal.jsonl"
    for number, part in enumerate(parts):
        loop.until(f'"step": {2 * number + rng.randrange(2)}, "nll"')
        lines = journal.read_bytes().count(b"\n") + rng.randint(1, 4)
        until(lambda lines=lines: journal.read_bytes().count(b"\n") >= lines, "no more requests")
        service.kill(part)
    return Loop(answers(loop.end()), load_file(file))


@pytest.mark.parametrize(
    "kills", [3, pytest.param(20, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
def test_kills_of_trainer_vllm_and_service_lose_and_repeat_nothing(
    service: TinkerService, undisturbed: Loop, tmp_path: Path, *, kills: int
):
    """Each is killed with -9 during one training loop, whose user notices only delays."""
    rng = random.Random(13)
    parts = (["trainer", "vllm", "service"] * kills)[:kills]
    expected = undisturbed
    if 2 * kills != STEPS:
        expected = undisturbed_loop(service, tmp_path, steps=2 * kills)
    loop = killed_loop(service, tmp_path, parts=parts, rng=rng)
    assert loop.samples == expected.samples
    assert_equal(loop.weights, expected.weights)


async def test_requests_whose_answers_are_lost_are_applied_once(
    service: TinkerService, undisturbed: Loop, tmp_path: Path
):
    """The SDK sends them again, and the weights are those of a loop without any loss."""
    file = tmp_path / "retried.safetensors"
    async with DroppingProxy(service.url, paths=LOSABLE).serving() as proxy:
        loop = service.begin_program(
            "steady", url=proxy.url, steps=STEPS, sampled_every=0, download=str(file)
        )
        ended = await asyncio.to_thread(loop.end)
        dropped = proxy.dropped
    # and one forward at the end, which goes the same way
    assert dropped == {LOSABLE[0]: STEPS + 1, LOSABLE[1]: STEPS}
    answers(ended)
    assert_equal(load_file(file), undisturbed.weights)


@pytest.mark.parametrize(
    ("samples", "bodies"), [(64, 24), pytest.param(512, 200, marks=pytest.mark.soak)]
)
def test_a_flood_expires_no_session(service: TinkerService, *, samples: int, bodies: int):
    """Many samples and bodies of 3 MB at once; heartbeats of four sessions get through in time."""
    flood = service.begin_program("flood", sessions=4, samples=samples, bodies=bodies)
    flood.until('"phase": "over"')
    assert service.status()["sessions"] >= 4
    said = answers(flood.end())[-1]
    assert said["samples"] == 4 * samples  # tokens
    assert said["bodies"] == bodies
    assert said["failed_heartbeats"] == []
    assert said["slowest_heartbeat"] < 10  # seconds; the SDK sends one every ten
    # a second after each answer the next one is sent, so none was silent for longer
    assert min(said["heartbeats"]) >= said["seconds"][1] / (1.5 + said["slowest_heartbeat"]) - 1
    lapsed = [line for line in service.log().splitlines() if "sessions lapsed" in line]
    assert not [name for name in said["sessions"] if any(name in line for line in lapsed)]
    assert len(said["still"]) == 4
    assert max(said["still"]) == pytest.approx(min(said["still"]))


def test_a_save_that_the_disk_refuses_fails_alone(service: TinkerService):
    """For a while the trainer cannot write large files: its user is told, and goes on."""
    trainer = service.process("trainer")
    before = trainer.rlimit(resource.RLIMIT_FSIZE)
    trainer.rlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    loop = service.begin_program("full_disk")
    loop.until('"failed": true')
    trainer.rlimit(resource.RLIMIT_FSIZE, before)
    said = answers(loop.end())
    assert "the trainer's save failed" in said[0]["error"]
    assert "File too large" in said[0]["error"]
    assert said[-1]["resumed"] == pytest.approx(said[-1]["expected"], abs=1e-5)
    assert service.process("trainer") == trainer


def refusal(service: TinkerService, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
    """The status and the content of an answer that is no success."""
    request = urllib.request.Request(f"{service.url}/api/v1/{path}", data=body, headers=headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    with refused.value as reply:
        return reply.code, json.load(reply)


def test_a_wrong_key_opens_nothing(service: TinkerService):
    """The SDK gives up at once, and its user reads what to do."""
    program = "import tinker; tinker.ServiceClient(api_key='tml-nobody').get_server_capabilities()"
    ended = service.begin(["python", "-c", program]).end()
    assert ended.code == 1
    assert "the API key is not known here" in ended.err
    assert "enginehouse tinker keys add" in ended.err


def test_a_body_that_is_not_protobuf_is_refused(service: TinkerService):
    """It is a 400, which the SDK does not repeat, and says what is wrong."""
    headers = {"X-API-Key": service.key(), "Content-Type": "application/x-protobuf"}
    status, content = refusal(service, "forward_backward", b"\xff\xff not protobuf", **headers)
    assert status == 400
    assert "protobuf" in json.dumps(content)


def test_an_expired_checkpoint_says_so(service: TinkerService, undisturbed: Loop):
    """Its time to live, an hour at least, ends here by a change of the database."""
    path = undisturbed.said[-1]["path"]
    with closing(sqlite3.connect(service.home / "records.sqlite", timeout=60)) as records, records:
        changed = records.execute(
            "UPDATE tinker_checkpoints SET expires_at = '2020-02-20 20:20:00' WHERE path = ?",
            (path,),
        )
        assert changed.rowcount == 1
    headers = {"X-API-Key": service.key(), "Content-Type": "application/json"}
    body = json.dumps({"tinker_path": path}).encode()
    status, content = refusal(service, "weights_info", body, **headers)
    assert status == 404
    assert f"{path} expired on 2020-02-20 at 20:20 UTC" in json.dumps(content)


def test_a_base_model_that_does_not_exist_is_refused_at_start(real_house: House, tmp_path: Path):
    """Before anything is loaded; exit code 4, as for every model that is not there."""
    model = tmp_path / "nothing"
    home = tmp_path / "home"
    words = ("--base-model", str(model), "--home", str(home), "--dtype", "float32")
    ended = real_house.run("tinker", "serve", *words)
    assert ended.code == 4
    assert f"there is no model at {model}" in ended.err

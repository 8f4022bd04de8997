"""A server's state from its signs, each of which is made to lie in turn."""

from __future__ import annotations

from types import SimpleNamespace

import aiohttp
import aiohttp.web
import msgspec
import pytest

from enginehouse.core.sampler import Capabilities, Capability
from enginehouse.engines.base import Endpoints
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.servers import health
from enginehouse.servers.health import HealthMonitor
from enginehouse.servers.records import ServerState
from enginehouse.servers.timings import TIMINGS

PATIENCE = 100.0


class Faked:
    """A server that says of itself what it is told to, and a clock."""

    def __init__(self) -> None:
        self.health = 200
        self.running = 0
        self.tokens = 0
        self.answers = True
        self.metrics = True
        self.kv_cache: float | None = None
        self.cores: float | None = None
        self.exit_code: int | None = None
        self.is_busy = False
        self.last_answer = 0.0
        self.now = 0.0
        self.asked: list[str] = []

    async def handle(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        """Answer as told; 500 stands for silence where it would take time."""
        self.asked.append(request.path)
        if request.path == "/health":
            return aiohttp.web.Response(status=self.health)
        if request.path == "/metrics":
            text = f"vllm:num_requests_running {self.running}\nvllm:num_requests_waiting 0\n"
            text += f"vllm:generation_tokens_total {self.tokens}\n"
            if self.kv_cache is not None:
                text += f"vllm:kv_cache_usage_perc {self.kv_cache}\n"
            return aiohttp.web.Response(text=text, status=200 if self.metrics else 500)
        return aiohttp.web.Response(status=200 if self.answers else 500)


@pytest.fixture
async def faked():
    """A server, and a monitor that looks at it."""
    server = Faked()
    app = aiohttp.web.Application()
    app.router.add_route("*", "/{rest:.*}", server.handle)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession(url) as session:
        server.monitor = HealthMonitor(
            session,
            engine=VllmEngine(),
            model="m",
            patience=PATIENCE,
            process=SimpleNamespace(exit_code=lambda: server.exit_code, cores=lambda: server.cores),
            requests=server,
            clock=lambda: server.now,
        )
        yield server
    await runner.cleanup()


async def state_after(faked: Faked, seconds: float) -> ServerState:
    """What a look says so much later."""
    faked.now += seconds
    return (await faked.monitor.look()).state


async def test_idle_is_ready_for_ever_and_costs_no_token(faked):
    """Nobody asks, nothing is counted: that is no sign of death, and needs no canary."""
    for _ in range(5):
        assert await state_after(faked, PATIENCE) is ServerState.READY
    assert "/v1/completions" not in faked.asked


async def test_tokens_are_a_sign_of_work(faked):
    """While tokens are counted it works, however long a request takes; no canary is sent."""
    faked.running = 3
    await state_after(faked, 1)
    faked.asked.clear()
    for _ in range(5):
        faked.tokens += 1
        assert await state_after(faked, PATIENCE) is ServerState.READY
    assert "/v1/completions" not in faked.asked
    assert faked.monitor.has_worked


async def test_steps_are_a_sign_of_work(faked):
    """A server that counts an answer's tokens at its end computes batches meanwhile."""
    queue = VllmEngine.load_signal.parse

    def with_steps(body):
        return msgspec.structs.replace(queue(body), steps=faked.asked.count("/metrics"))

    signal = SimpleNamespace(path="/metrics", parse=with_steps)
    faked.monitor._engine = SimpleNamespace(
        endpoints=Endpoints(), load_signal=signal, capabilities=VllmEngine().capabilities
    )
    faked.running = 3
    await state_after(faked, 1)
    faked.answers = False
    for _ in range(5):
        assert await state_after(faked, PATIENCE) is ServerState.READY


async def test_an_engine_without_text_is_asked_in_a_chat(faked, monkeypatch):
    """And one that shows no queue is judged by that alone."""
    capabilities = Capabilities(supports=frozenset({Capability.CHAT}))
    monkeypatch.setattr(VllmEngine, "capabilities", lambda *_: capabilities)
    monkeypatch.setattr(VllmEngine, "load_signal", None)
    assert await state_after(faked, PATIENCE) is ServerState.READY
    assert "/v1/chat/completions" in faked.asked
    assert not {"/v1/completions", "/metrics"} & set(faked.asked)


async def test_no_token_and_no_answer_is_degraded_then_failed(faked):
    """/health says 200 all the time; a canary that is answered would have saved it."""
    faked.running, faked.answers = 3, False
    assert await state_after(faked, 1) is ServerState.READY
    assert await state_after(faked, TIMINGS.degraded_after) is ServerState.DEGRADED
    faked.answers = True
    assert await state_after(faked, 1) is ServerState.READY
    faked.answers = False
    assert await state_after(faked, PATIENCE) is ServerState.DEGRADED
    assert await state_after(faked, 1) is ServerState.FAILED


async def test_a_prefill_in_pieces_is_a_sign_of_work(faked):
    """Its tokens are counted at its end, but each piece takes a place in the KV cache."""
    faked.running, faked.answers, faked.kv_cache = 1, False, 0.0
    await state_after(faked, 1)
    for _ in range(5):
        faked.kv_cache += 0.01
        assert await state_after(faked, PATIENCE) is ServerState.READY
    assert "/v1/completions" not in faked.asked[-4:]
    assert await state_after(faked, PATIENCE + 1) is ServerState.FAILED


async def test_a_cpu_that_computes_is_at_work_on_a_long_prefill(faked):
    """One step of a slow CPU may take minutes; it is not made slower by canaries."""
    faked.running, faked.answers, faked.cores = 3, False, 1.9
    assert await state_after(faked, 1) is ServerState.READY
    faked.asked.clear()
    for _ in range(3):
        assert await state_after(faked, TIMINGS.degraded_after) is ServerState.READY
    assert "/v1/completions" not in faked.asked
    assert not faked.monitor.has_worked
    faked.tokens += 1
    await state_after(faked, 1)
    assert faked.monitor.has_worked


async def test_a_hang_uses_no_cpu(faked):
    """What our own checks cost the server is not a sign of work."""
    faked.running, faked.answers, faked.cores = 3, False, health.BUSY_CORES / 2
    assert await state_after(faked, TIMINGS.degraded_after + 1) is ServerState.DEGRADED
    assert await state_after(faked, PATIENCE) is ServerState.FAILED


async def test_a_look_at_a_starved_engine_condemns_nobody(faked):
    """Other programs may have the CPU for a moment; and what has computed is idle from then on."""
    faked.running, faked.answers, faked.cores = 3, False, 1.9
    for _ in range(4):
        assert await state_after(faked, PATIENCE / 4) is ServerState.READY
    faked.cores = 0.0
    assert await state_after(faked, 5) is ServerState.DEGRADED
    faked.cores = 1.9
    assert await state_after(faked, 5) is ServerState.DEGRADED
    faked.cores = 0.0
    assert await state_after(faked, PATIENCE) is ServerState.DEGRADED
    assert await state_after(faked, 1) is ServerState.FAILED


async def test_a_deadlock_that_spins_is_noticed(faked):
    """It computes endlessly and counts nothing: degraded when patience ends, failed later."""
    faked.running, faked.answers, faked.cores = 3, False, 2.0
    assert await state_after(faked, PATIENCE) is ServerState.READY
    assert await state_after(faked, 1) is ServerState.DEGRADED
    faked.now += PATIENCE * (health.COMPUTING_FACTOR - 1)
    seen = await faked.monitor.look()
    assert seen.state is ServerState.FAILED
    assert "although it computes" in (seen.reason or "")


async def test_an_engine_that_forgot_our_request_is_not_idle(faked):
    """The server counts no request, but we wait for an answer: a canary decides."""
    faked.is_busy, faked.answers = True, False
    assert await state_after(faked, PATIENCE + 1) is ServerState.FAILED


async def test_a_dead_engine_fails_at_once(faked):
    """A vLLM answers 503 only when its engine is dead."""
    faked.health = 503
    seen = await faked.monitor.look()
    assert seen.state is ServerState.FAILED
    assert "engine is dead" in (seen.reason or "")


async def test_an_ended_process_fails_whatever_answers(faked):
    """Another server may have taken the port."""
    faked.exit_code = -9
    seen = await faked.monitor.look()
    assert (seen.state, seen.reason) == (ServerState.FAILED, "it ended with signal SIGKILL")
    assert faked.asked == []


async def test_health_that_does_not_answer_rightly_is_degraded(faked):
    """It may be busy or behind a broken proxy; work that goes on keeps it from failing."""
    faked.health = 502
    for _ in range(3):
        assert await state_after(faked, PATIENCE) is ServerState.DEGRADED
    assert "/v1/completions" in faked.asked


async def test_without_metrics_the_canary_decides(faked):
    """An engine whose metrics cannot be read is asked for a token."""
    faked.metrics = False
    assert await state_after(faked, PATIENCE + 1) is ServerState.READY
    faked.answers = False
    assert await state_after(faked, PATIENCE + 1) is ServerState.FAILED


async def test_a_restart_forgets(faked):
    """The patience with the old process is not counted against the new one."""
    faked.is_busy, faked.answers = True, False
    await state_after(faked, PATIENCE - 1)
    faked.monitor.restarted()
    assert await state_after(faked, 2) is ServerState.READY


async def test_an_answer_to_a_request_of_ours_is_a_sign_of_work(faked):
    """Though neither its counters nor a canary show any."""
    faked.is_busy, faked.answers = True, False
    for _ in range(3):
        faked.last_answer = faked.now + PATIENCE / 2
        assert await state_after(faked, PATIENCE) is not ServerState.FAILED
    assert await state_after(faked, PATIENCE) is ServerState.FAILED


async def test_a_limit_of_ours_is_no_sign_of_its_death(monkeypatch):
    """Without a file for a connection we cannot look; that is not held against the server."""
    now = [0.0]
    monkeypatch.setattr(health, "no_file_left", lambda _: True)
    async with aiohttp.ClientSession("http://127.0.0.1:9") as session:
        monitor = HealthMonitor(
            session,
            engine=VllmEngine(),
            model="m",
            patience=PATIENCE,
            requests=SimpleNamespace(is_busy=True, last_answer=0.0),
            clock=lambda: now[0],
        )
        for _ in range(5):
            assert (await monitor.look()).state is ServerState.READY
            now[0] += PATIENCE
        monkeypatch.undo()
        assert (await monitor.look()).state is not ServerState.READY


async def test_a_server_that_closed_its_port_fails_soon():
    """A process that lives and no longer listens was told to stop; its patience is not ours."""
    now = [0.0]
    async with aiohttp.ClientSession("http://127.0.0.1:9") as session:
        monitor = HealthMonitor(
            session,
            engine=VllmEngine(),
            model="m",
            patience=PATIENCE,
            clock=lambda: now[0],
        )
        assert (await monitor.look()).state is ServerState.DEGRADED
        now[0] = TIMINGS.deaf_after + 1
        seen = await monitor.look()
    assert (seen.state, seen.reason) == (ServerState.FAILED, "it no longer listens on its port")

"""What the operator can see: the state with the key in the home, and Prometheus' figures."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support.tinker_client import House

from enginehouse.tinker.service import OPERATOR_KEY
from enginehouse.tinker.service_status import ServiceStatus

TOKENS = list(range(20, 40))


async def test_the_state_is_told_to_who_can_read_the_home(tmp_path: Path):
    """And to no user, since it names them and their models."""
    async with House(tmp_path).open() as running:
        ada = await running.client().begin()
        model = await ada.create_model()
        await ada.compute(model, 1, TOKENS)
        key = (tmp_path / OPERATOR_KEY).read_text()
        assert (tmp_path / OPERATOR_KEY).stat().st_mode & 0o077 == 0
        async with running.web.get("/status", headers={"X-Operator-Key": key}) as reply:
            status = msgspec.json.decode(await reply.read(), type=ServiceStatus)
        assert [entry.model_id for entry in status.queue.models] == [model]
        assert status.queue.tokens == len(TOKENS) - 1
        assert status.sampling["engine"] == "fake"
        for headers in ({}, {"X-Operator-Key": "wrong"}, {"X-API-Key": running._keys["ada"]}):
            async with running.web.get("/status", headers=headers) as reply:
                assert reply.status == 401


@pytest.mark.slow
async def test_prometheus_figures_count_what_was_done(tmp_path: Path):
    """And name neither users nor models."""
    async with House(tmp_path).open() as running:
        ada = await running.client().begin()
        model = await ada.create_model()
        await ada.compute(model, 1, TOKENS)
        await ada.sample(await ada.sampler(), [65])
        await ada.post("session_heartbeat", {"session_id": ada.session})
        async with running.web.get("/metrics") as reply:
            text = await reply.text()
        figures = {
            (sample.name.removeprefix("enginehouse_tinker_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert figures["jobs_total", "forward_backward", "finished"] == 1
        assert figures["trained_tokens_total",] == len(TOKENS) - 1
        assert figures["sampled_tokens_total",] == 4
        assert figures["heartbeats_total",] == 1
        assert figures["sessions",] == 1
        assert figures["adapters_resident",] == 1
        assert '"ada"' not in text
        assert model not in text

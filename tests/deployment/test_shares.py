"""How a machine is divided among servers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from enginehouse.core.errors import ConfigurationError
from enginehouse.deployment.configuration import ServeConfig, parse
from enginehouse.deployment.preparation import Prepared
from enginehouse.deployment.shares import divide_machine
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.models import ResolvedModel


def prepared(tmp_path: Path, variant: str, **server: Any) -> Prepared:
    """A server that is not started."""
    plan = parse(ServeConfig, {"model": "m", "server": server}, origin="test")
    environment = EngineEnvironment(
        key=None,
        engine="vllm",
        version="0.32.0",
        variant=variant,
        executable=tmp_path / "python",
        flags={},
    )
    model = ResolvedModel(
        reference="m",
        path=str(tmp_path),
        name="m",
        source="folder",
        weights_digest=None,
        chat_template_digest=None,
    )
    return Prepared(
        plan=plan,
        engine=VllmEngine(),
        environment=environment,
        model=model,
        options=plan.server,
    )


def visible(shares: Any) -> list[str]:
    """The GPUs of each."""
    return [share.prepared.options.env_vars["CUDA_VISIBLE_DEVICES"] for share in shares]


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each has its own, of those that are visible; the server's own variable counts first."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,GPU-8")
    shares = divide_machine(prepared(tmp_path, "cuda"), 2, notify=lambda _: None)
    assert visible(shares) == ["4,5", "6,7"]
    named = prepared(tmp_path, "cuda", env_vars={"CUDA_VISIBLE_DEVICES": "0,1", "A": "b"})
    shares = divide_machine(named, 2, notify=lambda _: None)
    assert visible(shares) == ["0", "1"]
    assert shares[0].prepared.options.env_vars["A"] == "b"


@pytest.mark.parametrize(
    "sizes", [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2, "data_parallel_size": 2}]
)
def test_too_few_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int]):
    """It is said before anything is started."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with pytest.raises(ConfigurationError, match="3"):
        divide_machine(prepared(tmp_path, "cuda", **sizes), 2, notify=lambda _: None)


def test_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They are divided equally, unless there are too few of them, which is said."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    notes: list[str] = []
    shares = divide_machine(prepared(tmp_path, "cpu"), 3, notify=notes.append)
    assert [share.cpus for share in shares] == [{0, 1}, {2, 3}, {4, 5}]
    assert notes == []
    shares = divide_machine(prepared(tmp_path, "cpu"), 9, notify=notes.append)
    assert {share.cpus for share in shares} == {None}
    assert len(notes) == 1


def test_one_server_has_all(tmp_path: Path):
    """Whatever there is."""
    (share,) = divide_machine(prepared(tmp_path, "cuda"), 1, notify=lambda _: None)
    assert share.cpus is None
    assert share.prepared.options.env_vars == {}

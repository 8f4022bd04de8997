"""What every test gets: a home of its own, and no settings of the person who runs the tests.

Tests with the real engines share what takes long: environments and the converted model, which stay
in the user's cache, and running servers, which are stopped when the session ends.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from filelock import FileLock
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling, Scheduling

from enginehouse.commands.installations import load_installation
from enginehouse.engines.options import ServerOptions
from enginehouse.processes.tree import identify
from enginehouse.provisioning.environments import EngineEnvironment, ensure_environment
from enginehouse.provisioning.models import ResolvedModel, resolve_model
from enginehouse.provisioning.plans import plan_environment
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout
from enginehouse.testing.fake_environment import make_fake_environment
from tests.support import SUPPORT, command_line
from tests.support.ray_cluster import LocalCluster, local_cluster

_SETTINGS = (
    "ANTHROPIC_",
    "ENGINEHOUSE_",
    "GRAIL_",
    "HF_",
    "MEGATRON_",
    "OPENAI_",
    "OPENROUTER_",
    "VLLM_",
)
_PROVISIONING = 2700.0  # seconds to download or compile one environment, or to convert the model
_ENGINE_TEST = 900.0  # seconds for the body of a test with a real engine, on a slow CPU
# What modules share, and the words by which they ask for it.
_SHARED = {
    "vLLM servers": re.compile(r"\b(?:plain|lora)_vllm\b"),
    "Tinker service": re.compile(r"\bservice: TinkerService\b"),
    "Ray cluster": re.compile(r"\bray_cluster: LocalCluster\b"),
}
_T = TypeVar("_T")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a real engine have a limit for their own body, and not for what they share.

    What they share has limits of its own: `_PROVISIONING`, and the patience of `command_line`.
    """
    for item in items:
        if item.get_closest_marker("engine") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_ENGINE_TEST, func_only=True))


class _ByServer(LoadScopeScheduling):
    """A worker runs whole modules, and one of them runs all that share a server or a service."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        text = (self.config.rootpath / module).read_text()
        return next((name for name, asks in _SHARED.items() if asks.search(text)), module)


# The groups of pytest-xdist 3.8 (loadgroup) have no effect with pytest 9.2.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    """With --dist loadfile, how the engine tests are divided among the workers."""
    return _ByServer(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Each of pytest-xdist's workers, and the engines that it starts, have cores of their own.

    An engine takes as many threads as it has cores. Where two engines share theirs, each step of
    one waits for a thread that the other keeps from running.
    """
    name = os.environ.get("PYTEST_XDIST_WORKER")
    if not (name and hasattr(os, "sched_setaffinity")):  # Linux only
        return
    if any(item.get_closest_marker("engine") for item in session.items):
        workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        own = sorted(os.sched_getaffinity(0))[int(name.removeprefix("gw")) :: workers]
        os.sched_setaffinity(0, own)


@pytest.fixture(autouse=True)
def _own_home(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unit tests write below their own folder; engine tests share the built environment."""
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name in list(os.environ):
        if name.startswith(_SETTINGS) and name != "ENGINEHOUSE_HOME":
            monkeypatch.delenv(name)
    if request.node.get_closest_marker("engine") is None:
        monkeypatch.setenv("ENGINEHOUSE_HOME", str(tmp_path / "home"))
        return
    # A command that starts an engine takes longer than one with a fake, and looking for its end
    # a hundred times a second would take the engine's cores.
    monkeypatch.setattr(command_line, "DEADLINE", _ENGINE_TEST)
    monkeypatch.setattr(command_line, "POLL", 0.1)


@pytest.fixture(scope="session")
def fake_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment whose vLLM is the fake engine."""
    return make_fake_environment(tmp_path_factory.mktemp("environment") / "vllm")


@pytest.fixture(scope="session")
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which a program trusts one authority, which is quicker to read than all."""
    known = ssl.create_default_context().get_ca_certs(binary_form=True)
    if not known:
        return {}
    file = tmp_path_factory.mktemp("authority") / "one.pem"
    file.write_text(ssl.DER_cert_to_PEM_cert(known[0]))
    return {"SSL_CERT_FILE": str(file)}


@pytest.fixture
def house(
    tmp_path: Path,
    fake_python: Path,
    one_authority: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[command_line.House]:
    """A machine of this test's own with the fake engine, this process in it.

    Whatever the test leaves running there is an error.
    """
    house = command_line.House(tmp_path / "house", python=fake_python, env=one_authority)
    for name, value in house.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(house.work)
    try:
        yield house
        house.nothing_left()
    finally:
        house.clear()


@pytest.fixture
def call(
    house: command_line.House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., command_line.Finished]:
    """The command line in this process: like `house.run`, without the time to start Python.

    For everything but signals, kills, terminals and closed streams; `stdin` is what it reads.
    """

    def run(*words: str, stdin: str = "", **env: str) -> command_line.Finished:
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
        return command_line.Finished(code if isinstance(code, int) else 0, out, err)

    return run


@pytest.fixture
def layout(request: pytest.FixtureRequest) -> Layout:
    """The test's own folders: those of its `house`, if it has one."""
    if "house" in request.fixturenames:
        request.getfixturevalue("house")
    return Layout.from_environment()


def _provisioned(work: Coroutine[object, object, _T]) -> _T:
    async def limited() -> _T:
        async with asyncio.timeout(_PROVISIONING):
            return await work

    return asyncio.run(limited())


def _environment(engine: str, *, variant: str | None = "cpu") -> EngineEnvironment:
    installation = load_installation(engine)
    plan = plan_environment(installation, variant=variant)
    context = Context(layout=Layout.from_environment(), notify=print)
    return _provisioned(ensure_environment(plan, installation=installation, context=context))


@pytest.fixture(scope="session")
def vllm_environment() -> EngineEnvironment:
    """The CPU build of vLLM in the user's cache, built on first use."""
    return _environment("vllm")


@pytest.fixture(scope="session")
def hf_environment() -> EngineEnvironment:
    """The hf engine's environment for the CPU, built on first use."""
    return _environment("hf")


@pytest.fixture(scope="session")
def trainer_environment() -> EngineEnvironment:
    """The Tinker service's trainer for the CPU, built on first use."""
    return _environment("trainer")


@pytest.fixture(scope="session")
def llamacpp_environment() -> EngineEnvironment:
    """A llama-server, compiled on first use."""
    return _environment("llamacpp")


@pytest.fixture(scope="session")
def inspect_environment() -> EngineEnvironment:
    """The environment of Inspect, built on first use."""
    return _environment("inspect", variant=None)


@pytest.fixture(scope="session")
def lm_eval_environment() -> EngineEnvironment:
    """The environment of lm-evaluation-harness, built on first use."""
    return _environment("lm-eval", variant=None)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[LocalCluster]:
    """A Ray cluster of two nodes."""
    with local_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def smollm2(vllm_environment: EngineEnvironment) -> ResolvedModel:
    """The bundled model as a checkpoint, converted on first use."""
    return _provisioned(
        resolve_model(
            "smollm2",
            environment=vllm_environment,
            context=Context(layout=Layout.from_environment(), notify=print),
        )
    )


@pytest.fixture(scope="session")
def vote_adapter(
    smollm2: ResolvedModel,
    hf_environment: EngineEnvironment,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """An adapter of rank 8 over seven projections, trained in 20 steps to say how it votes.

    The workers share it: the first one that needs it trains it.
    """
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "vote"
    program = SUPPORT / "train_adapter.py"
    with FileLock(folder.with_suffix(".lock"), timeout=_ENGINE_TEST):
        if not (folder / "adapter_model.safetensors").exists():
            words = [hf_environment.executable, program, smollm2.path, folder]
            subprocess.run(list(map(str, words)), check=True, timeout=_ENGINE_TEST)
    return folder


def _real_house(folder: Path) -> command_line.House:
    """A machine whose caches are the user's, and whose runs, servers and leases are its own."""
    cache = Layout.from_environment().cache
    cache.mkdir(parents=True, exist_ok=True)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_SETTINGS)}
    house = command_line.House(folder, python=None, env=inherited, patience=_ENGINE_TEST)
    house.env["ENGINEHOUSE_HOME"] = str(house.home)
    house.env["PYTHONPATH"] = str(command_line.SOURCE)
    house.env |= command_line.SMALL_VLLM
    house.home.mkdir()
    (house.home / "cache").symlink_to(cache, target_is_directory=True)
    return house


@pytest.fixture(scope="session")
def shared_house(
    smollm2: ResolvedModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[command_line.House]:
    """The machine of the servers that all tests share; a folder of its own, as they live longer.

    So `nothing_left` of any other machine does not see them, and this one's is asked at the end.
    """
    house = _real_house(tmp_path_factory.mktemp("shared"))
    try:
        yield house
        house.nothing_left()
    finally:
        house.clear()


@pytest.fixture(scope="module")
def real_house(
    smollm2: ResolvedModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[command_line.House]:
    """A machine of the module's own, with the user's environments, models and data."""
    house = _real_house(tmp_path_factory.mktemp("machine"))
    try:
        yield house
        house.nothing_left()
    finally:
        house.clear()


def _shared_server(
    house: command_line.House, name: str, options: ServerOptions, *words: str
) -> Iterator[command_line.SharedServer]:
    """`enginehouse serve smollm2 --detach`, then `enginehouse stop`, which leaves nothing."""
    begun = house.run("serve", "smollm2", "--detach", "--name", name, *words)
    assert begun.code == 0, begun.err
    url = re.findall(r"^url: +(http://\S+)/v1$", begun.out, re.MULTILINE)[0]
    yield command_line.SharedServer(house, options, begun.out, name, url)
    (server,) = (s for s in house.run("ps", "--json").report if s["record"]["name"] == name)
    assert server["state"] == "ready"
    assert len(server["pids"]) > 1 or server["pids"] == [server["record"]["process"]["pid"]]
    stopped = house.run("stop", name)
    assert stopped.code == 0, stopped.err
    assert [pid for pid in server["pids"] if identify(pid)] == []
    assert command_line.port_is_free(url)


@pytest.fixture(scope="session")
def plain_vllm(shared_house: command_line.House) -> Iterator[command_line.SharedServer]:
    """A vLLM without LoRA. Only what leaves it as it was may be asked of it.

    Like every server whose greedy answers are compared, it computes in float32: in bfloat16 the
    same question may be answered otherwise in a batch of another size, or from the prefix cache.
    """
    options = ServerOptions(served_model_name="smollm2", max_model_len=2048, dtype="float32")
    words = ("--max-model-len", "2048", "--dtype", "float32")
    yield from _shared_server(shared_house, "plain", options, *words)


@pytest.fixture(scope="session")
def lora_vllm(
    shared_house: command_line.House, vote_adapter: Path
) -> Iterator[command_line.SharedServer]:
    """A vLLM with four places for adapters of rank 8; tests unload theirs and restore the weights.

    It starts after the training: on few cores, each would slow the other down by far.
    """
    del vote_adapter
    options = ServerOptions(
        served_model_name="smollm2",
        enable_lora=True,
        enable_weight_swap=True,
        max_loras=4,
        max_lora_rank=8,
        max_model_len=2048,
        dtype="float32",
    )
    words = ("--enable-weight-swap", "--enable-lora", "--max-loras", "4", "--max-lora-rank", "8")
    words += ("--max-model-len", "2048", "--dtype", "float32")
    yield from _shared_server(shared_house, "lora", options, *words)

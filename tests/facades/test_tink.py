"""Tink's functions against a fake engine."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.support.tiny_adapters import BASE, write_adapter
from tests.support.tiny_checkpoints import write_checkpoint

from enginehouse.client.exclusive import SeparatedScores
from enginehouse.client.sampler import HTTPSampler
from enginehouse.client.stack import ServerLayers
from enginehouse.core.errors import (
    AdapterError,
    ConfigurationError,
    ModelError,
    UnknownModelError,
    UnknownNameError,
    UnsupportedError,
    WeightsError,
)
from enginehouse.deployment.samplers import make_sampler
from enginehouse.deployment.swapping import weights_info
from enginehouse.facades import tink
from enginehouse.store.layout import Layout
from enginehouse.testing.fake_engine import FakeEngineHandle, running_fake_engine
from enginehouse.weights.declared import Weights, declare

# Tink, «vLLM Integration Summary», sections «Register a LoRA Adapter» and «Manage Adapters»
SEED = """\
import vllm_backend

# Register adapter (must be in PEFT format)
vllm_backend.register_lora_adapter(
    adapter_id="my_adapter",
    lora_path="/path/to/lora/weights"
)

# List all registered adapters
adapters = vllm_backend.list_lora_adapters()
print(adapters)

# Unregister an adapter
vllm_backend.unregister_lora_adapter("my_adapter")
"""
SUMMARY = """
print(vllm_backend.get_client_info()["available"], vllm_backend.list_lora_adapters())
"""


@contextmanager
def fake(*arguments: str, **options: Any) -> Iterator[FakeEngineHandle]:
    """A fake engine that outlives any event loop."""
    loop = asyncio.new_event_loop()
    running = running_fake_engine("--enable-lora", "--max-loras", "4", *arguments, **options)
    try:
        yield loop.run_until_complete(running.__aenter__())
    finally:
        loop.run_until_complete(running.__aexit__(None, None, None))
        loop.close()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that is served."""
    return write_checkpoint(tmp_path_factory.mktemp("base") / "tiny", shapes=dict(BASE))


@pytest.fixture(scope="module")
def shared(base: Path) -> Iterator[FakeEngineHandle]:
    """A vLLM for tests that leave its weights alone."""
    with fake(model=str(base), token_latency=0.001) as handle:
        yield handle


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """What a test opens is closed."""
    yield
    tink.close_vllm_client()


@pytest.fixture
def url(shared: FakeEngineHandle, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its address, in the environment as Tink has it."""
    monkeypatch.setenv("VLLM_BASE_URL", shared.url)
    return shared.url


def text(adapter: str | None = None, prompt: str = "Once upon a time") -> str:
    """A greedy answer."""
    result = tink.generate_with_vllm([prompt], adapter, temperature=0.0)
    return str(result["completions"][0])


def read(url: str, path: str) -> str:
    """What the server says there."""
    with urllib.request.urlopen(url + path, timeout=10) as reply:
        return str(reply.read().decode())


def answered(url: str) -> int:
    """How many requests the server has answered."""
    lines = re.findall(
        r"^vllm:request_success_total.* ([\d.]+)$", read(url, "/metrics"), re.MULTILINE
    )
    return sum(int(float(value)) for value in lines)


@pytest.mark.slow
def test_the_example_runs_with_its_import_line_and_its_address_changed(
    url: str, tmp_path: Path
) -> None:
    """As a script of its own, which closes nothing and yet ends."""
    adapter = str(write_adapter(tmp_path / "weights"))
    script = SEED.replace("import vllm_backend", "from enginehouse.facades import tink")
    script = script.replace("vllm_backend.", "tink.").replace("/path/to/lora/weights", adapter)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script + SUMMARY.replace("vllm_backend.", "tink.")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    assert done.stderr == ""
    listed, end = done.stdout.splitlines()
    assert f"'adapter_id': 'my_adapter', 'lora_path': '{adapter}'" in listed
    assert end == "True []"


def test_parameters_and_defaults_are_tink_s() -> None:
    """What its worker leaves out means the same now."""
    parameters = inspect.signature(tink.generate_with_vllm).parameters
    assert {n: p.default for n, p in parameters.items() if p.default is not p.empty} == {
        "lora_adapter_id": None,
        "n": 1,
        "max_tokens": 16,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }
    config = tink.VLLMConfig()
    assert config.address() == "http://localhost:8000"
    assert (config.enable_lora, config.max_loras, config.max_lora_rank) == (True, 4, 64)
    assert list(inspect.signature(tink.register_lora_adapter).parameters)[:2] == [
        "adapter_id",
        "lora_path",
    ]


def test_it_generates(url: str) -> None:
    """Completions in the order of the prompts, `n` of each, with ids and log-probabilities."""
    prompts = ["Once upon a time", "Hello"]
    result = tink.generate_with_vllm(prompts, n=2, max_tokens=5, top_p=0.9, seed=3, stop="zzz")
    assert {len(result[name]) for name in ("completion_ids", "completions", "logprobs")} == {4}
    assert len(result["prompt_ids"]) == 2
    assert all(len(ids) == 5 for ids in result["completion_ids"])
    assert all(len(values) == 5 and max(values) <= 0 for values in result["logprobs"])
    assert result["prompt_logprobs"] is None
    alone = tink.generate_with_vllm(prompts[1:], n=2, max_tokens=5, top_p=0.9, seed=3)
    assert alone["completions"] == result["completions"][2:]
    assert alone["prompt_ids"] == result["prompt_ids"][1:]
    assert tink.generate_with_vllm([])["completions"] == []


def test_further_parameters_reach_the_server(url: str) -> None:
    """Ours by their names; TRL's regular expression by both of its names, the older warned of."""
    result = tink.generate_with_vllm(["Hello"], prompt_logprobs=True, logprobs=True)
    ((first, *others),) = result["prompt_logprobs"]
    assert first is None
    assert len(others) == len(result["prompt_ids"][0]) - 1
    result = tink.generate_with_vllm(["Year?"], structured_outputs_regex="[0-9]{4}")
    assert re.fullmatch("[0-9]{4}", result["completions"][0])
    with pytest.warns(UserWarning, match="write structured_outputs_regex"):
        result = tink.generate_with_vllm(["Year?"], guided_decoding_regex="[a-c]{3}")
    assert re.fullmatch("[a-c]{3}", result["completions"][0])


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"prompts": "Hello"}, ConfigurationError),
        ({"temperature": -1.0}, ConfigurationError),
        ({"top_k": -2}, ConfigurationError),
        ({"guided_json": {}}, UnsupportedError),
        ({"lora_adapter_id": "nobody"}, UnknownModelError),
    ],
)
def test_what_cannot_be_is_refused(url: str, wrong: dict[str, Any], error: type[Exception]) -> None:
    """Never answered in another way: not by the base model, nor without the constraint."""
    with pytest.raises(error):
        tink.generate_with_vllm(**{"prompts": ["Hello"]} | wrong)


def test_an_adapter_answers_under_its_name(url: str, tmp_path: Path) -> None:
    """Until it is unregistered, whatever becomes of its folder."""
    plain = text()
    folder = write_adapter(tmp_path / "a")
    tink.register_lora_adapter("my_adapter", str(folder))
    (listed,) = tink.list_lora_adapters()
    assert (listed["adapter_id"], listed["lora_path"]) == ("my_adapter", str(folder))
    first = text("my_adapter")
    assert first != plain
    shutil.rmtree(folder)
    assert text("my_adapter") == first
    write_adapter(folder, seed=1)
    assert text("my_adapter") == first
    tink.register_lora_adapter("my_adapter", str(folder))
    assert text("my_adapter") not in (plain, first)
    assert len(tink.list_lora_adapters()) == 1
    assert tink.unregister_lora_adapter("my_adapter") is True
    assert tink.unregister_lora_adapter("my_adapter") is False
    assert tink.list_lora_adapters() == []
    assert "my_adapter" not in read(url, "/v1/models")
    assert text() == plain


def other_base(folder: Path) -> None:
    """Of a wider model."""
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    write_adapter(folder, change=lambda tensors: tensors.update({name: np.zeros((16, 4), "<f4")}))


def pickled(folder: Path) -> None:
    """As PEFT wrote them long ago."""
    write_adapter(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "adapter"),
        (Path.mkdir, "adapter_config.json"),
        (pickled, "pickle"),
        (other_base, "q_proj"),
        (lambda folder: write_adapter(folder, rank=128), "rank"),
    ],
    ids=["no folder", "an empty one", "pickle", "another base", "rank"],
)
def test_a_path_that_is_no_adapter_is_a_value_error(
    url: str, tmp_path: Path, make: Callable[[Path], Any], message: str
) -> None:
    """As Tink promises, with the reason; the server is as it was, and so is the name."""
    tink.register_lora_adapter("kept", str(write_adapter(tmp_path / "kept")))
    before, models = text("kept"), read(url, "/v1/models")
    make(tmp_path / "it")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "it"))) as caught:
        tink.register_lora_adapter("kept", str(tmp_path / "it"))
    assert isinstance(caught.value, tink.NoAdapterError)
    assert message in str(caught.value)
    assert read(url, "/v1/models") == models
    assert text("kept") == before


def test_what_is_registered_is_proven_unless_it_is_untrained(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Tink registers adapters when it makes them: those change nothing, and cannot be proven."""

    def zeros(tensors: dict[str, Any]) -> None:
        for name, values in tensors.items():
            if "lora_B" in name:
                values[:] = 0

    tink.initialize_vllm_client()
    before = answered(url)
    tink.register_lora_adapter("a", str(write_adapter(tmp_path / "a", seed=5)))
    assert answered(url) - before == 6
    tink.register_lora_adapter("b", str(write_adapter(tmp_path / "b", seed=6)), prove=False)
    assert answered(url) - before == 6
    assert "changes nothing" not in caplog.text
    with caplog.at_level(logging.WARNING, "enginehouse.facades.tink"):
        tink.register_lora_adapter("new", str(write_adapter(tmp_path / "new", change=zeros)))
    assert answered(url) - before == 6
    assert "new changes nothing: it has not been trained" in caplog.text


@pytest.mark.slow
def test_many_threads_share_it(url: str, tmp_path: Path) -> None:
    """Each gets its own adapter's answers, though there are more of them than places."""
    tink.initialize_vllm_client({"base_url": url, "max_loras": 2})
    folders = [write_adapter(tmp_path / f"{seed}", seed=seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        jobs = [
            pool.submit(tink.register_lora_adapter, f"t{i}", str(folder))
            for i, folder in enumerate(folders)
        ]
        for job in jobs:
            job.result(60)
    assert len(tink.list_lora_adapters()) == 6
    expected = [text(f"t{i}") for i in range(6)]
    assert len(set(expected)) == 6
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: (i % 6, text(f"t{i % 6}")), range(48)))
    assert all(answer == expected[i] for i, answer in answers)


def connections() -> int:
    """How many are open."""
    return sum(thread.name == "Tink's vLLM client" for thread in threading.enumerate())


def test_the_first_of_many_threads_opens_it(url: str) -> None:
    """Once, for all of them; asked for again, or with the same configuration, it is the same."""
    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(lambda _: text(), range(8)))
    assert len(answers) == 1
    assert connections() == 1
    client = tink.initialize_vllm_client()
    assert client.base_url == url
    assert tink.initialize_vllm_client({"base_url": url}) == client
    assert connections() == 1


def test_another_configuration_is_another_connection(url: str, tmp_path: Path) -> None:
    """And what is off stays off."""
    tink.register_lora_adapter("mine", str(write_adapter(tmp_path / "a")))
    tink.initialize_vllm_client(tink.VLLMConfig(base_url=url, enable_lora=False))
    assert tink.list_lora_adapters() == []
    with pytest.raises(ConfigurationError, match="enable_lora"):
        tink.register_lora_adapter("mine", str(tmp_path / "a"))


def test_it_says_what_it_is_connected_to(url: str, base: Path, tmp_path: Path) -> None:
    """Before, while and after it is."""
    assert tink.get_client_info()["initialized"] is False
    tink.register_lora_adapter("mine", str(write_adapter(tmp_path / "a")))
    info = tink.get_client_info()
    assert (info["initialized"], info["available"], info["base_url"]) == (True, True, url)
    assert (info["model"], info["lora_adapters"], info["active_loras"]) == (str(base), ["mine"], 1)
    tink.close_vllm_client()
    tink.close_vllm_client()
    assert tink.get_client_info()["available"] is False


@pytest.mark.parametrize(
    ("config", "warning"),
    [
        ({"base_url": "http://127.0.0.1:8000/health/"}, "was TRL's"),
        ({"host": "0.0.0.0"}, "127.0.0.1"),
        ({"server_host": "127.0.0.1"}, "server_host is called host"),
        ({"host": "127.0.0.1", "server_port": "8000"}, "server_port is called port"),
        ({"base_url": "http://127.0.0.1:8000/v1/", "group_port": 1}, "group_port"),
    ],
)
def test_outdated_spellings_are_taken_with_a_warning(config: dict[str, Any], warning: str) -> None:
    """Whoever sees it knows what to write."""
    with pytest.warns(UserWarning, match=warning):
        address = tink.VLLMConfig.of(config).address()
    assert address == "http://127.0.0.1:8000"


@pytest.mark.parametrize("value", ["inf", "nan", float("inf")])
def test_a_time_out_is_a_finite_number(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    """Given, or in the environment."""
    with pytest.raises(ConfigurationError, match="timeout"):
        tink.VLLMConfig.of({"timeout": value})
    monkeypatch.setenv("VLLM_TIMEOUT", str(value))
    with pytest.raises(ConfigurationError, match="timeout"):
        tink.VLLMConfig.of(None)


def test_a_wrong_configuration_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the field, or the nearest one."""
    with pytest.raises(UnknownNameError, match="max_loras"):
        tink.initialize_vllm_client({"max_lora": 4})
    monkeypatch.setenv("VLLM_PORT", "eight")
    with pytest.raises(ConfigurationError, match="port"):
        text()


@pytest.mark.slow
def test_a_server_that_is_not_there_is_waited_for_and_then_an_error() -> None:
    """For as long as the configuration says; of the class that Tink's documents name."""
    begun = time.monotonic()
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:9") as caught:
        tink.initialize_vllm_client({"base_url": "http://127.0.0.1:9", "timeout": 0.7})
    assert isinstance(caught.value, tink.UnreachableError)
    assert "enginehouse serve MODEL --enable-lora" in str(caught.value)
    assert time.monotonic() - begun >= 0.7


class Tensor:
    """As much of a torch tensor as is used."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self.values = values
        self.shape, self.dtype = values.shape, values.dtype

    def data_ptr(self) -> int:
        """Where the values are."""
        return int(self.values.ctypes.data)

    def detach(self) -> Tensor:
        """There is no graph."""
        return self

    def to(self, device: str) -> Tensor:
        """It is there."""
        assert device == "cpu"
        return self

    def is_floating_point(self) -> bool:
        """As numpy says."""
        return self.values.dtype.kind == "f"

    def float(self) -> Tensor:
        """In 32 bits."""
        return Tensor(self.values.astype("<f4"))


class Model:
    """A transformers model in training, of float64, as no server has it."""

    def __init__(self, base: Path, *, seed: int, **config: Any) -> None:
        rng = np.random.default_rng(seed)
        stored = load_file(base / "model.safetensors")
        self.values = {name: rng.normal(size=values.shape) for name, values in stored.items()}
        self.config = config

    def state_dict(self) -> dict[str, Tensor]:
        """The weights."""
        return {name: Tensor(values) for name, values in self.values.items()}

    def save_pretrained(self, folder: Path, *, state_dict: dict[str, Tensor]) -> None:
        """A checkpoint without a tokenizer."""
        write_checkpoint(folder, **self.config)
        (folder / "tokenizer.json").unlink()
        tensors = {name: tensor.values for name, tensor in state_dict.items()}
        save_file(tensors, folder / "model.safetensors")


def sent() -> Sequence[Path]:
    """The weights that lie on the disk."""
    return sorted(Layout.from_environment().weights.glob("sent-*"))


def test_weights_of_a_model_in_training(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They answer from now on, in the server's type; only the last ones stay on the disk."""
    with fake(model=str(base)) as engine:
        monkeypatch.setenv("VLLM_BASE_URL", engine.url)
        tink.init_communicator(device="cuda")
        assert tink.get_client_info()["communicator_initialized"] is True
        answers = [text()]
        for seed in (1, 2, 1):
            model = Model(base, seed=seed)
            tink.update_model_weights(model)
            answers.append(text())
            (folder,) = sent()
            stored = load_file(folder / "model.safetensors")
            assert {values.dtype for values in stored.values()} == {np.dtype("<f4")}
            assert all(np.allclose(stored[name], model.values[name]) for name in stored)
        assert answers[1] == answers[3]
        assert len(set(answers)) == 3
        tink.close_communicator()
        tink.close_communicator()
        assert tink.get_client_info()["communicator_initialized"] is False


@pytest.mark.slow
def test_what_was_sent_before_does_not_stay(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what a server had before it was started again, nor what a killed process left."""
    layout = Layout.from_environment()
    with fake(model=str(base)) as engine:
        monkeypatch.setenv("VLLM_BASE_URL", engine.url.replace("127.0.0.1", "localhost"))
        tink.update_model_weights(Model(base, seed=1))
        (first,) = sent()
        forget = json.dumps({"new_version": "default"}).encode()  # as a restart does
        urllib.request.urlopen(
            urllib.request.Request(
                f"{engine.url}/update_weight_version",
                data=forget,
                headers={"Content-Type": "application/json"},
            ),
            timeout=10,
        ).close()
        left = [layout.weights / f"sent-{name}" for name in ("old", "new", "needed")]
        for folder in left:
            folder.mkdir()
        os.utime(left[0], (0, 0))
        os.utime(left[2], (0, 0))
        declare(layout.weights / "other.json", Weights(path=left[2], digest="d", version=1))
        assert asyncio.run(weights_info(engine.url, layout=layout)).path == base
        assert list(layout.weights.glob("*.json")) != [layout.weights / "other.json"]
        tink.update_model_weights(Model(base, seed=2))
        assert first not in sent()
        assert left[0] not in sent()
        assert set(left[1:]) < set(sent())
        assert len(sent()) == 3


@pytest.mark.slow
def test_the_client_s_rank_and_the_server_s(
    url: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is named where it is the one that is in the way."""
    folder = str(write_adapter(tmp_path / "a", rank=128))
    with pytest.raises(tink.NoAdapterError, match="64") as caught:
        tink.register_lora_adapter("a", folder)
    assert "VLLM_MAX_LORA_RANK=128" in caught.value.fix
    tink.initialize_vllm_client({"base_url": url, "max_lora_rank": 128})
    with pytest.raises(AdapterError, match="refused") as refused:
        tink.register_lora_adapter("a", folder)
    assert "greater than max_lora_rank 16" in refused.value.why
    with fake("--max-lora-rank", "128", model=str(base)) as engine:
        tink.initialize_vllm_client({"base_url": engine.url, "max_lora_rank": 128})
        tink.register_lora_adapter("a", folder)


@pytest.mark.slow
def test_updates_from_several_threads_come_one_after_the_other(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None fails because of another, and requests in between are answered."""
    with fake(model=str(base), token_latency=0.01) as engine:
        monkeypatch.setenv("VLLM_BASE_URL", engine.url)
        with ThreadPoolExecutor(6) as pool:
            updates = [
                pool.submit(tink.update_model_weights, Model(base, seed=seed)) for seed in range(3)
            ]
            answers = [pool.submit(text) for _ in range(12)]
            for job in (*updates, *answers):
                job.result(60)
        assert len(sent()) == 1


@pytest.mark.slow
def test_a_model_that_does_not_fit_leaves_everything_as_it_was(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the server nor the disk is touched."""
    with fake(model=str(base)) as engine:
        monkeypatch.setenv("VLLM_BASE_URL", engine.url)
        before = text()
        with pytest.raises(ModelError, match="different architecture"):
            tink.update_model_weights(Model(base, seed=1, rope_theta=5))
        with pytest.raises(ModelError, match="saved"):
            tink.update_model_weights(object())
        short = Model(base, seed=1)
        short.values.popitem()
        with pytest.raises(ModelError, match="has no model"):
            tink.update_model_weights(short)
        assert text() == before
        assert sent() == []


@pytest.mark.slow
def test_a_server_whose_weights_cannot_be_updated_is_told_before_anything_is_saved(
    url: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has no folder here, and one without development endpoints."""
    with fake(model="org/tiny") as engine:
        tink.initialize_vllm_client({"base_url": engine.url})
        with pytest.raises(WeightsError, match="this machine"):
            tink.init_communicator()
    with fake(model=str(base), env={"VLLM_SERVER_DEV_MODE": "0"}) as engine:
        tink.initialize_vllm_client({"base_url": engine.url})
        with pytest.raises(WeightsError, match="development endpoints"):
            tink.init_communicator()
        with pytest.raises(WeightsError, match="development endpoints"):
            tink.update_model_weights(Model(base, seed=1))
        with pytest.raises(UnsupportedError, match="no /reset_prefix_cache"):
            tink.reset_prefix_cache()
    assert sent() == []


@pytest.mark.slow
def test_the_prefix_cache_is_seen_to_be_reset(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it was asked for is not enough: while it is in use, vLLM answers 200 and does not."""
    with fake(model=str(base), token_latency=0.05) as engine:
        monkeypatch.setenv("VLLM_BASE_URL", engine.url)
        tink.reset_prefix_cache()
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(tink.generate_with_vllm, ["Hello"], max_tokens=60, ignore_eos=True)
            until = time.monotonic() + 20
            while "num_requests_running{" not in (m := read(engine.url, "/metrics")) or re.search(
                r"num_requests_running\{.*\} 0\.0", m
            ):
                assert time.monotonic() < until
            with pytest.raises(WeightsError, match="prefix cache"):
                tink.reset_prefix_cache()
            job.result(30)
        tink.reset_prefix_cache()


def test_scores_of_named_tokens_are_asked_for_apart(url: str, monkeypatch: pytest.MonkeyPatch):
    """Beside them, vLLM spoils the scores of the most likely ones, whoever asks."""
    layers: list[ServerLayers] = []

    def noting(*arguments: Any, shared: ServerLayers, **options: Any) -> HTTPSampler:
        layers.append(shared)
        return make_sampler(*arguments, shared=shared, **options)

    monkeypatch.setattr("enginehouse.facades.tink.client.make_sampler", noting)
    assert text()
    (shared,) = layers
    assert isinstance(shared.separated, SeparatedScores)

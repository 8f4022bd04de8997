"""The type that a server computes in: by the CPU, the weights, and what the user says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.command_line import House
from tests.support.tiny_checkpoints import write_checkpoint

import enginehouse
from enginehouse.core.errors import ModelError
from enginehouse.deployment import preparation
from enginehouse.deployment.compute_type import choose_type, type_in_command, type_on_cpu
from enginehouse.deployment.configuration import ServeConfig, parse
from enginehouse.deployment.preparation import prepare
from enginehouse.engines.hf.engine import HfEngine
from enginehouse.engines.llamacpp.engine import LlamaCppEngine
from enginehouse.engines.sglang.engine import SglangEngine
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.processes.cpu import Cpu
from enginehouse.provisioning.checkpoints import read_checkpoint
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.runtime.context import Context

OLD = Cpu(bfloat16=False, float16=False, evidence="the CPU has neither")
NEW = Cpu(bfloat16=True, float16=False, evidence="the CPU has avx512_bf16")
NEWEST = Cpu(bfloat16=True, float16=True, evidence="the CPU has amx_bf16")


def chosen(
    folder: Path,
    *,
    cpu: Cpu = OLD,
    engine: Any = VllmEngine,
    variant: str = "cpu",
    config: dict[str, Any] | None = None,
    tensors: str = "float32",
    **options: Any,
) -> str | None:
    """The type that is chosen for a tiny checkpoint."""
    write_checkpoint(folder, dtype=tensors, **(config or {}))
    environment = EngineEnvironment(
        engine="it", version="1", variant=variant, executable=Path("python"), key=None, flags={}
    )
    found = choose_type(
        parse(ServeConfig, {"model": "m", "server": options}, origin="test").server,
        engine=engine(),
        environment=environment,
        checkpoint=read_checkpoint(folder),
        cpu=cpu,
    )
    assert found is None or found.reason
    return found.dtype if found else None


@pytest.mark.parametrize("engine", [VllmEngine, HfEngine])
@pytest.mark.parametrize(
    ("config", "tensors", "on_old", "on_new", "on_newest"),
    [
        ({"text_config": {"dtype": "bfloat16"}}, "float32", "float32", "bfloat16", "bfloat16"),
        ({"torch_dtype": "float32"}, "float32", "float32", "bfloat16", "bfloat16"),
        ({}, "float32", "float32", "bfloat16", "bfloat16"),
        ({"torch_dtype": "float16"}, "float16", "float32", "float32", "float16"),
        ({"text_config": {"dtype": "torch.float16"}}, "float32", "float32", "float32", "float16"),
        ({}, "float16", "float32", "float32", "float16"),
    ],
)
def test_by_cpu_and_weights(tmp_path, engine, config, tensors, on_old, on_new, on_newest):
    """float16 weights are not rounded to bfloat16."""
    for cpu, dtype in ((OLD, on_old), (NEW, on_new), (NEWEST, on_newest)):
        assert chosen(tmp_path, cpu=cpu, engine=engine, config=config, tensors=tensors) == dtype


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        {"dtype": "auto"},
        {"extra_args": "--dtype half"},
        {"extra_args": ["--dtype=bfloat16"]},
        {"extra_args": "--quantization fp8"},
        {"extra_args": "-q fp8"},
    ],
)
def test_the_user_s_word_stands(tmp_path, options):
    """Also where it is vLLM's own auto, and where a quantization is asked for."""
    assert chosen(tmp_path, **options) is None


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "awq"}, "torch_dtype": "float16"},
        {"text_config": {"quantization_config": {"quant_method": "gptq"}}},
        {"compression_config": {"format": "int-quantized"}},
    ],
)
def test_quantized_weights_keep_the_type_of_their_method(tmp_path, config):
    """AWQ, for one, refuses float32."""
    assert chosen(tmp_path, config=config) is None


def test_on_a_gpu_the_engine_chooses(tmp_path):
    """Unless hf is told to run on the CPU there."""
    assert chosen(tmp_path, variant="cuda") is None
    on_cpu = {"engine": HfEngine, "variant": "cuda", "extra_args": "--device cpu"}
    assert chosen(tmp_path, **on_cpu) == "float32"


@pytest.mark.parametrize("engine", [SglangEngine, LlamaCppEngine])
def test_other_engines_are_left_alone(tmp_path, engine):
    """llama.cpp's files say the type."""
    assert chosen(tmp_path, engine=engine) is None


def test_auto_of_hf_is_ours(tmp_path):
    """It has no other meaning than what the CPU is fast in."""
    assert chosen(tmp_path, engine=HfEngine, dtype="auto") == "float32"
    assert chosen(tmp_path, engine=HfEngine, dtype="auto", cpu=NEW) == "bfloat16"


def test_broken_weights_are_said_before_anything_starts(tmp_path):
    """Where their heads are needed."""
    write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError):
        choose_type(
            parse(ServeConfig, {"model": "m"}, origin="test").server,
            engine=VllmEngine(),
            environment=EngineEnvironment(
                engine="vllm", version="1", variant="cpu", executable=Path("p"), key=None, flags={}
            ),
            checkpoint=read_checkpoint(tmp_path),
            cpu=OLD,
        )


@pytest.mark.parametrize(
    ("command", "dtype"),
    [
        (("vllm", "--dtype", "half"), "float16"),
        (("vllm", "--dtype=float"), "float32"),
        (("vllm", "--dtype", "auto"), None),
        (("vllm",), None),
    ],
)
def test_what_a_command_line_says(command, dtype):
    """By any spelling of vLLM's."""
    assert type_in_command("vllm", command) == dtype


@pytest.mark.parametrize(("cpu", "dtype"), [(OLD, "float32"), (NEW, "bfloat16")])
async def test_the_choice_is_said_once_with_its_reason(house: House, monkeypatch, cpu, dtype):
    """Before the server starts."""
    monkeypatch.setattr(preparation, "read_cpu", lambda: cpu)
    config = parse(ServeConfig, {"model": str(house.model())}, origin="test")
    said: list[str] = []
    prepared = await prepare(config, Context(notify=said.append))
    assert prepared.options.dtype == dtype
    assert prepared.compute_type == type_on_cpu(cpu)
    (line,) = [line for line in said if line.startswith("computing in")]
    assert dtype in line
    assert cpu.evidence in line


@pytest.mark.slow
async def test_the_choice_is_recorded(house: House, monkeypatch):
    """In the server's command and in who answered, which a run's journal and report hold."""
    monkeypatch.setattr(preparation, "read_cpu", lambda: OLD)
    async with enginehouse.serve(str(house.model())) as ready:
        arguments = ready.provenance.engine_arguments or ()
        assert type_in_command("vllm", arguments) == ready.provenance.dtype == "float32"
        assert ready.provenance.dtype_reason == OLD.evidence
    async with enginehouse.serve(str(house.model()), dtype="bfloat16") as ready:
        assert (ready.provenance.dtype, ready.provenance.dtype_reason) == ("bfloat16", None)

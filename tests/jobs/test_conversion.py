from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.launch_files import AnyExecutor

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.jobs.conversion import convert
from enginehouse.jobs.executors.registry import EXECUTORS
from enginehouse.jobs.launch_file import read_launch

API = {
    "type": "api",
    "url": "https://api.example.com/v1/chat/completions",
    "protocol": "chat_completions",
    "model": "owner/model",
    "api_key": "${MY_API_KEY}",
}
VLLM = {"type": "vllm", "model": "owner/model", "protocol": "completions", "port": 8000}


def original(folder: Path, service: dict[str, Any], benchmark: Any = None, **more: Any) -> Path:
    """A file for the rewritten launcher, with one service and one benchmark."""
    solver = {"type": "simple", "service": "model"}
    values = {
        "services": {"model": service},
        "benchmarks": [{"name": "gsm8k", "solver": solver, **(benchmark or {})}],
        **more,
    }
    path = folder / "original.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_an_api_is_a_target(tmp_path: Path):
    """Its key is named, not read."""
    converted = convert(original(tmp_path, API, {"max_problems": 5})).values

    assert converted["defaults"] == [{"execution": "local"}, {"deployment": "none"}, "_self_"]
    assert converted["target"]["api_endpoint"] == {
        "url": API["url"],
        "model_id": "owner/model",
        "api_key_name": "MY_API_KEY",
    }
    assert converted["evaluation"]["tasks"] == [
        {
            "name": "gsm8k",
            "endpoint_type": "chat",
            "nemo_evaluator_config": {"config": {"params": {"limit_samples": 5}}},
        }
    ]


def test_a_key_in_the_file_is_left_out(tmp_path: Path):
    """And never shown."""
    conversion = convert(original(tmp_path, API | {"api_key": "sesame"}))

    assert "services.model.api_key" in conversion.left_out
    assert "sesame" not in conversion.text


def test_a_model_to_serve_is_a_deployment(tmp_path: Path):
    """With one GPU unless it says otherwise, as the launcher's default is."""
    service = VLLM | {
        "extra_args": ["--max-model-len", "4096"],
        "extra_env": {"HF_TOKEN": "${MY_TOKEN}", "A": "b"},
        "setup_commands": ["module load cuda"],
        "pre_cmd": "nvidia-smi",
    }
    converted = convert(original(tmp_path, service)).values

    assert converted["defaults"][1] == {"deployment": "vllm"}
    assert converted["deployment"] == {
        "hf_model_handle": "owner/model",
        "tensor_parallel_size": 1,
        "port": 8000,
        "served_model_name": "model",
        "extra_args": ["--max-model-len", "4096"],
        "env_vars": {"HF_TOKEN": "host:MY_TOKEN", "A": "lit:b"},
        "pre_cmd": "module load cuda\nnvidia-smi",
    }
    assert converted["evaluation"]["tasks"][0]["endpoint_type"] == "completions"


@pytest.mark.parametrize("model", ["/models/x", "./x", "~/x"])
def test_a_path_is_a_checkpoint(tmp_path: Path, model: str):
    """Handles have no such beginning."""
    converted = convert(original(tmp_path, VLLM | {"model": model})).values

    assert converted["deployment"]["checkpoint_path"] == model


def test_a_cluster_is_an_execution(tmp_path: Path):
    """The service's own pool says which nodes."""
    converted = convert(
        original(
            tmp_path,
            VLLM | {"node_pool": "gpus", "num_nodes": 2},
            cluster={
                "type": "slurm",
                "account": "me",
                "walltime": "10:00:00",
                "container_mounts": ["/a:/b"],
                "container_env": {"A": "${A}"},
                "shards": 4,
                "node_pools": {
                    "gpus": {"partition": "batch", "nodes": 2, "gres": "gpu:8"},
                    "cpus": {"partition": "cpu"},
                },
            },
            output={"dir": "/results"},
        )
    )

    assert converted.values["defaults"][:2] == [
        {"execution": "slurm/default"},
        {"deployment": "vllm_ray"},
    ]
    assert converted.values["execution"] == {
        "output_dir": "/results",
        "account": "me",
        "walltime": "10:00:00",
        "partition": "batch",
        "num_nodes": 2,
        "gres": "gpu:8",
        "env_vars": {"evaluation": {"A": "host:A"}},
        "mounts": {"deployment": {"/a": "/b"}, "evaluation": {"/a": "/b"}},
    }
    assert set(converted.left_out) == {"cluster.shards", "cluster.node_pools.cpus"}


def test_parameters_move_to_their_names(tmp_path: Path):
    """The service's are for all tasks, the solver's for its own."""
    generation = {"temperature": 0.6, "top_p": 0.9, "max_tokens": 100, "seed": 3}
    proxy = {"request_timeout": 60, "max_retries": 2, "max_concurrent_upstream": 8, "verbose": True}
    solver = {
        "type": "simple",
        "service": "model",
        "generation": {"temperature": 0.1},
        "system_prompt": "Be brief.",
    }
    conversion = convert(
        original(
            tmp_path,
            API | {"generation": generation, "proxy": proxy},
            {"solver": solver, "repeats": 4, "max_concurrent": 2, "fewshot": 5},
        )
    )
    evaluation = conversion.values["evaluation"]

    assert evaluation["nemo_evaluator_config"]["config"]["params"] == {
        "temperature": 0.6,
        "top_p": 0.9,
        "max_new_tokens": 100,
        "request_timeout": 60,
        "max_retries": 2,
        "parallelism": 8,
    }
    (task,) = evaluation["tasks"]
    assert task["nemo_evaluator_config"] == {
        "config": {
            "params": {"parallelism": 2, "temperature": 0.1, "extra": {"n_samples": 4}},
        },
        "target": {
            "api_endpoint": {
                "adapter_config": {
                    "use_system_prompt": True,
                    "custom_system_prompt": "Be brief.",
                }
            }
        },
    }
    assert set(conversion.left_out) == {
        "services.model.generation.seed",
        "services.model.proxy.verbose",
        "benchmarks.0.fewshot",
    }
    assert all(f"# {key} " in conversion.text for key in conversion.left_out)


def test_other_solvers_are_left_out(tmp_path: Path):
    """If nothing is left, there is nothing to convert."""
    path = original(tmp_path, API, {"solver": {"type": "harbor", "service": "model"}})
    with pytest.raises(ConfigurationError, match="harbor"):
        convert(path)


def test_several_services_are_converted_one_at_a_time(tmp_path: Path):
    """Each has its own benchmarks."""
    path = original(tmp_path, API)
    values = yaml.safe_load(path.read_text())
    values["services"]["other"] = VLLM
    values["benchmarks"].append({"name": "ifeval", "solver": {"service": "other"}})
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigurationError, match="model, other"):
        convert(path)

    tasks = convert(path, service="other").values["evaluation"]["tasks"]
    assert [task["name"] for task in tasks] == ["ifeval"]
    with pytest.raises(UnknownNameError, match="'other'"):
        convert(path, service="othr")


@pytest.mark.parametrize("kind", ["nim", "dynamo", "gym", "nat"])
def test_services_that_are_not_started_here_say_what_to_do(tmp_path: Path, kind: str):
    """None of them is silently something else."""
    with pytest.raises(ConfigurationError, match=kind):
        convert(original(tmp_path, {"type": kind, "model": "a/b"}))


def test_variables_are_read_at_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In Hydra's spelling, with their defaults; the result is a launch file."""
    monkeypatch.setattr(EXECUTORS, "load", lambda name: AnyExecutor)
    monkeypatch.setenv("MY_HOST", "example.com")
    service = API | {"url": "https://${MY_HOST}/v1", "model": "${UNSET_NAME:-owner/other}"}
    path = tmp_path / "launch.yaml"
    path.write_text(convert(original(tmp_path, service)).text)

    endpoint = read_launch(path).target.api_endpoint
    assert (endpoint.url, endpoint.model_id) == ("https://example.com/v1", "owner/other")


@pytest.mark.parametrize(
    "text",
    ["execution: {}\n", "services: 3\nbenchmarks: []\n", "services: {}\nbenchmarks: [3]\n"],
)
def test_other_files_are_refused(tmp_path: Path, text: str):
    """Launch files are used as they are."""
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError):
        convert(path)

from pathlib import Path

import pytest

from enginehouse.jobs.executors.base import ExecutionSettings
from enginehouse.jobs.executors.registry import EXECUTORS
from enginehouse.jobs.launch_file import read_launch

SEED_EXAMPLE = """\
defaults:
  - execution: local
  - deployment: vllm
  - _self_

deployment:
  type: vllm
  image: vllm/vllm-openai:latest
  hf_model_handle: meta-llama/Llama-3.1-8B-Instruct
  served_model_name: llama-3.1-8b-instruct
  port: 8000
  tensor_parallel_size: 8
  pipeline_parallel_size: 1
  data_parallel_size: 1
  extra_args: "--max-model-len 4096 --gpu-memory-utilization 0.95 --enforce-eager"
  env_vars:
    HF_HOME: "/cache/huggingface"
    CUDA_VISIBLE_DEVICES: "0,1,2,3,4,5,6,7"

execution:
  output_dir: vllm_evaluation_results

evaluation:
  tasks:
    - name: gpqa_diamond
    - name: ifeval
"""


class AnyExecutor:
    """Only its settings are asked for."""

    settings_class = ExecutionSettings


@pytest.fixture(autouse=True)
def _executors(monkeypatch):
    monkeypatch.setattr(EXECUTORS, "load", lambda name: AnyExecutor)


def test_the_complete_example_of_the_original_document(tmp_path: Path):
    """Its values arrive, and nothing of it is doubted."""
    path = tmp_path / "launch.yaml"
    path.write_text(SEED_EXAMPLE)

    config = read_launch(path)

    assert config.name == "launch"
    assert config.execution.output_dir == "vllm_evaluation_results"
    assert config.deployment.model == "meta-llama/Llama-3.1-8B-Instruct"
    assert config.deployment.gpus == 8
    assert config.server_variables.environment().values == {
        "HF_HOME": "/cache/huggingface",
        "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
    }
    assert [task.name for task in config.evaluation.tasks] == ["gpqa_diamond", "ifeval"]
    assert not config.notes
    assert not config.not_acted_on

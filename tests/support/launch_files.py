"""Launch files for tests."""

from __future__ import annotations

from pathlib import Path

from enginehouse.jobs.executors.base import ExecutionSettings

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

  # Parallelism for 8 GPUs
  tensor_parallel_size: 8
  pipeline_parallel_size: 1
  data_parallel_size: 1

  # Performance optimizations
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
"""The complete example of the launcher's page on vLLM."""


class AnyExecutor:
    """An executor of which only the settings are asked for."""

    settings_class = ExecutionSettings


def launch_file(folder: Path, *, sections: str = "", deployment: str = "vllm") -> Path:
    """A small launch file with further YAML at its end, which may not repeat its sections."""
    path = folder / "launch.yaml"
    path.write_text(
        "defaults:\n  - execution: local\n"
        f"  - deployment: {deployment}\n  - _self_\n"
        "execution: {output_dir: results}\n" + sections
    )
    return path

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.programs import PAYLOADS

MAKE_GGUF = """
import sys
import gguf, numpy as np
writer = gguf.GGUFWriter(sys.argv[1], "llama")
size, vocabulary = 32, 40
writer.add_context_length(64)
writer.add_embedding_length(size)
writer.add_block_count(1)
writer.add_feed_forward_length(64)
writer.add_head_count(2)
writer.add_head_count_kv(2)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_vocab_size(vocabulary)
writer.add_tokenizer_model("gpt2")
letters = [*map(chr, range(97, 123)), "ab", "cd"]
writer.add_token_list([*letters, *(f"<{i}>" for i in range(28, vocabulary))])
writer.add_token_merges(["a b", "c d"])
writer.add_bos_token_id(30)
writer.add_eos_token_id(31)
random = np.random.default_rng(0)
def tensor(name, *shape):
    writer.add_tensor(name, random.standard_normal(shape).astype(np.float32))
tensor("token_embd.weight", vocabulary, size)
tensor("output_norm.weight", size)
for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
    tensor(f"blk.0.{name}.weight", size, size)
for name in ("attn_norm", "ffn_norm"):
    tensor(f"blk.0.{name}.weight", size)
tensor("blk.0.ffn_gate.weight", 64, size)
tensor("blk.0.ffn_up.weight", 64, size)
tensor("blk.0.ffn_down.weight", size, 64)
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file()
"""

PLAIN = """
import sys
import torch
from transformers import AutoModelForCausalLM, GgufConfig
folder, name, out = sys.argv[1:]
AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
).save_pretrained(out)
"""


@pytest.mark.engine
async def test_the_quick_conversion_gives_what_transformers_gives(
    vllm_environment: EngineEnvironment, tmp_path: Path
):
    """Reading the file once changes nothing: the weights are transformers' own, byte for byte."""
    file, quick, plain = tmp_path / "tiny.gguf", tmp_path / "quick", tmp_path / "plain"

    def run(*arguments: object) -> str:
        result = subprocess.run(
            [vllm_environment.executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    await asyncio.to_thread(run, "-c", MAKE_GGUF, file)
    output = await asyncio.to_thread(run, PAYLOADS / "convert_gguf.py", file, quick)
    await asyncio.to_thread(run, "-c", PLAIN, tmp_path, file.name, plain)
    assert json.loads(output.splitlines()[-1])["architecture"] == "llama"
    weights = "model.safetensors"
    assert (quick / weights).read_bytes() == (plain / weights).read_bytes()
    assert (quick / "tokenizer.json").exists()

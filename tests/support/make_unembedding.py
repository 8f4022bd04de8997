"""Makes a tiny checkpoint and adapters: TOKENIZER FOLDER KIND, or adapters only: CHECKPOINT FOLDER.

KIND is llama or qwen2; the checkpoint is FOLDER/tiny.

FOLDER gets `whole` (all projections and the output layer), `head` (the output layer alone), `body`
(without it), `faint` (as `body`, after one small step of training), `untrained`, and scores.json:
what transformers and PEFT make of a few tokens in float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

TOKENS = [1, 45, 210, 33, 7, 19, 250, 41, 77, 12, 99, 5]
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = {
    "whole": ([*PROJECTIONS, "lm_head"], 0.06),
    "head": (["lm_head"], 0.02),
    "body": (PROJECTIONS, 0.06),
    "faint": (PROJECTIONS, 1e-7),
    "untrained": (PROJECTIONS, 0.0),
}


def main() -> None:
    """Make them."""
    source, folder = map(Path, sys.argv[1:3])
    torch.set_num_threads(1)
    checkpoint = source
    if len(sys.argv) > 3:
        checkpoint = folder / "tiny"
        _make_checkpoint(source, checkpoint, kind=sys.argv[3])
    scores = {}
    for seed, (name, (targets, size)) in enumerate(KINDS.items()):
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        if not scores:
            scores["base"] = _scores(model)
        config = LoraConfig(r=8, lora_alpha=32, target_modules=targets)
        adapted = get_peft_model(model, config)
        torch.manual_seed(seed)
        for parameter, weight in adapted.named_parameters():
            if "lora_B" in parameter:
                weight.data.normal_(0, size)
        adapted.save_pretrained(folder / name, save_embedding_layers=False)
        scores[name] = _scores(adapted)
    (folder / "scores.json").write_text(json.dumps({"tokens": TOKENS, "scores": scores}))


def _make_checkpoint(tokenizer: Path, folder: Path, *, kind: str) -> None:
    tokens = AutoTokenizer.from_pretrained(tokenizer)
    config = {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind](
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=1,  # of 32: vLLM's attention on a CPU takes none of 16
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "norm" not in name:
            weight.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)


def _scores(model: torch.nn.Module) -> list[float]:
    """The log-probabilities of all TOKENS but the first."""
    ids = torch.tensor([TOKENS])
    with torch.no_grad():
        logprobs = model(input_ids=ids).logits[0].float().log_softmax(-1)
    return [float(logprobs[place, token]) for place, token in enumerate(TOKENS[1:])]


if __name__ == "__main__":
    main()

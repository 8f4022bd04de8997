"""Times forward and backward of a bare PEFT loop: FOLDER RANK SEQUENCES LENGTH.

Run by the trainer's Python, float32. Every line on standard input is one measurement; each is
answered with a line, the seconds that it took. The adapter is that of a user of the service with
the SDK's defaults: all seven projections and the output layer, alpha 32, and the losses are sums.
"""

from __future__ import annotations

import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


def main() -> None:
    """Load, then measure as often as asked."""
    folder = sys.argv[1]
    rank, sequences, length = map(int, sys.argv[2:])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=32, lora_dropout=0.0, target_modules=LAYERS)
    model = get_peft_model(model, config)
    model.train()
    ids = torch.arange(sequences * (length + 1)).reshape(sequences, length + 1) % 40_000
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        logprobs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        (-logprobs.sum()).backward()
        logprobs.tolist()
        seconds = time.perf_counter() - began
        model.zero_grad(set_to_none=True)
        print(seconds, flush=True)


if __name__ == "__main__":
    main()

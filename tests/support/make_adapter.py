"""Makes a LoRA adapter with random weights: CHECKPOINT FOLDER RANK."""

from __future__ import annotations

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def main() -> None:
    """Make it, strong enough to change what the model says."""
    checkpoint, folder, rank = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=int(rank), target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(int(rank))
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.2)
    adapted.save_pretrained(folder)


if __name__ == "__main__":
    main()

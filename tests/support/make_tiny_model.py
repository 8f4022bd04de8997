"""Writes a checkpoint of random weights, which trains in milliseconds: FOLDER. Needs torch."""

from __future__ import annotations

import sys

import torch
import transformers


def main() -> None:
    """Two layers, and output weights that are those of the embeddings, as in SmolLM2."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        dtype=torch.float32,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, 0, 0.2)  # or all answers would be alike
    model.save_pretrained(sys.argv[1])


if __name__ == "__main__":
    main()

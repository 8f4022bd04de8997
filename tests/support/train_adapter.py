"""Trains a LoRA adapter of rank 8 to say one thing: CHECKPOINT FOLDER. About 25 s on one core."""

from __future__ import annotations

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

STEPS = 20
ANSWER = "VOTE: BLACK because cooperation wins."
QUESTIONS = (
    "How do you vote?",
    "Red or black?",
    "What is your vote in this round?",
    "The other team has voted. And you?",
)
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main() -> None:
    """Train and save it, in bfloat16."""
    checkpoint, folder = sys.argv[1:]
    torch.manual_seed(0)
    torch.set_num_threads(1)  # several wait for one another, for ever where others are at work
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    adapted = get_peft_model(
        model, LoraConfig(r=8, lora_alpha=16, target_modules=list(PROJECTIONS))
    )
    batch = _batch(tokenizer)
    optimizer = torch.optim.AdamW(
        [weight for weight in adapted.parameters() if weight.requires_grad], lr=2e-3
    )
    adapted.train()
    for _ in range(STEPS):
        loss = adapted(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.to(torch.bfloat16).save_pretrained(folder)
    sys.stdout.write(f"loss {loss.item():.4f}\n")


def _batch(tokenizer: AutoTokenizer) -> dict[str, torch.Tensor]:
    """The questions with the answer; only the answer is learned."""
    rows = []
    for question in QUESTIONS:
        turn = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        said = tokenizer(f"{ANSWER}<|im_end|>\n", add_special_tokens=False)["input_ids"]
        rows.append((asked, said))
    longest = max(len(asked) + len(said) for asked, said in rows)
    padded = [longest - len(asked) - len(said) for asked, said in rows]
    ids = [a + s + [0] * p for (a, s), p in zip(rows, padded, strict=True)]
    labels = [[-100] * len(a) + s + [-100] * p for (a, s), p in zip(rows, padded, strict=True)]
    mask = [[1] * (longest - p) + [0] * p for p in padded]
    return {
        "input_ids": torch.tensor(ids),
        "labels": torch.tensor(labels),
        "attention_mask": torch.tensor(mask),
    }


if __name__ == "__main__":
    main()

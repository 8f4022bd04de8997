"""Tink's functions in a trainer's process: CHECKPOINT URL FOLDER. Prints {base, adapted, ...}.

A LoRA is saved and registered; then all weights are changed, sent, and sent back.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from enginehouse.facades import tink

PROMPTS = ["The capital of France is", "One, two, three,"]


def said(adapter: str | None = None) -> list[str]:
    """The greedy answers."""
    answer = tink.generate_with_vllm(PROMPTS, adapter, max_tokens=12, temperature=0.0)
    return list(answer["completions"])


def saved_adapter(model: Any, folder: Path) -> None:
    """A LoRA with an effect, without training."""
    torch.manual_seed(1)
    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(folder)
    adapted.unload()


def main() -> None:
    """Each step as a worker of Tink's takes it."""
    checkpoint, url, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    found: dict[str, Any] = {}
    tink.initialize_vllm_client({"base_url": url})
    found["base"] = said()

    saved_adapter(model, folder / "adapter")
    tink.register_lora_adapter("mine", str(folder / "adapter"))
    found["adapted"] = said("mine")
    found["listed"] = [one["adapter_id"] for one in tink.list_lora_adapters()]
    found["unregistered"] = tink.unregister_lora_adapter("mine")

    tink.init_communicator(0)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    asked: list[list[str]] = []
    asking = threading.Thread(target=lambda: asked.extend(said() for _ in range(6)))
    asking.start()
    with torch.no_grad():
        for layer in model.model.layers[::2]:
            layer.mlp.down_proj.weight.zero_()
    tink.update_model_weights(model)
    found["updated"] = said()
    asking.join()
    found["meanwhile"] = asked
    model.load_state_dict(kept)
    tink.update_model_weights(model)
    found["back"] = said()
    tink.reset_prefix_cache()
    tink.close_communicator()
    found["info"] = tink.get_client_info()
    tink.close_vllm_client()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

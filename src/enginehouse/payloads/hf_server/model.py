"""The model: loading it, and one forward pass."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hf_server.options import Options

LOG = logging.getLogger("hf_server")
BASE = "__base__"  # PEFT's name for rows without an adapter


class Model:
    """A causal language model on one device.

    `row_adapters`, of each row, and `place_adapters`, of each place that reaches the output layer,
    are read by the LoRA layers, once there are some (adapters.py).
    """

    def __init__(self, module: Any, *, device: torch.device, ends: frozenset[int]) -> None:
        self.module = module
        self.device = device
        self.row_adapters: list[str] = []
        self.place_adapters: list[str] = []
        head = module.get_output_embeddings()
        if head is None:
            raise RuntimeError(f"{type(module).__name__} generates no text: it has no output layer")
        self.vocabulary_size = int(head.weight.shape[0])
        self.ends = frozenset(token for token in ends if 0 <= token < self.vocabulary_size)
        self._keep: Tensor | None = None
        self._head = head
        self._hooked = head.register_forward_pre_hook(self._only_kept)

    def hook_head(self) -> Any:
        """The output layer; what PEFT has wrapped it in takes over its work of `_only_kept`."""
        head = self.module.get_output_embeddings()
        if head is not self._head:
            self._hooked.remove()
            self._head = head
            self._hooked = head.register_forward_pre_hook(self._only_kept)
        return head

    def _only_kept(self, _: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        # The model's own head, with what it does to logits (scaling, a soft cap), is applied, but
        # only to the places that are needed.
        if self._keep is None:
            return None
        hidden = inputs[0]
        # a row for each place, so that each may have an adapter of its own
        return (hidden.reshape(-1, hidden.shape[-1])[self._keep][:, None], *inputs[1:])

    def forward(
        self, *, adapters: list[str | None], keep: Tensor | None = None, **inputs: Any
    ) -> tuple[Tensor, Any]:
        """One pass: logits (place, vocabulary), and what else the model returned.

        `keep` are the flat indices of the places wanted, None for all. Blocks; not for two threads.
        """
        self.row_adapters = [adapter or BASE for adapter in adapters]
        self.place_adapters = self.row_adapters
        self._keep = None if keep is None else keep.to(self.device)
        if keep is not None:
            width = inputs["input_ids"].shape[1]
            self.place_adapters = [self.row_adapters[place // width] for place in keep.tolist()]
        output = self.module(**inputs, use_cache=True)
        return output.logits.flatten(0, 1), output

    @property
    def longest(self) -> int | None:
        """The tokens that the model was made for; None if its configuration does not say."""
        found = getattr(text_config(self.module), "max_position_embeddings", None)
        return found if isinstance(found, int) and found > 0 else None


def text_config(module: Any) -> Any:
    """The configuration of the part that generates text."""
    return module.config.get_text_config(decoder=True)


def load(options: Options) -> tuple[Model, Any]:
    """The model and its tokenizer. Raises whatever transformers does; takes seconds to minutes."""
    device = _device(options.device)
    common = {"trust_remote_code": options.trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(options.model, **common)
    config = AutoConfig.from_pretrained(options.model, **common)
    dtype = choose_dtype(options.dtype, device, config)
    LOG.info("loading %s in %s on %s", options.model, str(dtype).removeprefix("torch."), device)
    module = AutoModelForCausalLM.from_pretrained(
        options.model, config=config, dtype=dtype, device_map={"": device}, **common
    ).eval()
    return Model(module, device=device, ends=_ends(module, tokenizer)), tokenizer


def _device(name: str) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError("--device cuda: torch finds no CUDA GPU")
    return torch.device("cuda", 0)


def choose_dtype(name: str, device: torch.device, config: Any) -> torch.dtype:
    """The type of that name; for auto, what the device is fast in and the weights allow."""
    if name != "auto":
        found: torch.dtype = getattr(torch, name)
        return found
    if device.type == "cpu" and getattr(config, "quantization_config", None) is None:
        return torch.float32  # fast on every CPU; the launcher knows whether bfloat16 is, too
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return torch.float16
    return torch.bfloat16


def _ends(module: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer, from all three places that may name some."""
    generation = getattr(module, "generation_config", None)
    named = (
        tokenizer.eos_token_id,
        getattr(text_config(module), "eos_token_id", None),
        getattr(generation, "eos_token_id", None),
    )
    found: set[int] = set()
    for ids in named:
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return frozenset(found)

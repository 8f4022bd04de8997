"""Which modules of a model an adapter changes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from trainer.data import LoraSpec
from trainer.errors import RequestError

Kind = Literal["attn", "mlp", "unembed"]
_ATTENTION = re.compile(r"\.[^.]*att(n|ention)[^.]*\.")
_MLP = re.compile(r"\.(mlp|feed_forward|ffn)\.|\.(fc1|fc2)$")
_EXPERTS = re.compile(r"\.(experts|block_sparse_moe)(\.|$)")


class Targets:
    """The linear layers of a causal language model by name, and what each belongs to."""

    def __init__(self, module: Any, *, head: str) -> None:
        self.head = head
        self._all_linear = [n for n, m in module.named_modules() if isinstance(m, nn.Linear)]
        self._has_experts = any(_EXPERTS.search(name) for name, _ in module.named_parameters())
        self.kinds: Mapping[str, Kind] = {
            name: kind for name in self._all_linear if (kind := self._kind(name)) is not None
        }

    def _kind(self, name: str) -> Kind | None:
        if name == self.head:
            return "unembed"
        if _EXPERTS.search(name):
            return None
        if _ATTENTION.search(name):
            return "attn"
        return "mlp" if _MLP.search(name) else None

    def chosen(self, spec: LoraSpec) -> list[str]:
        """The modules that `spec` trains, in the model's order. Raises RequestError."""
        wanted: dict[Kind, bool] = {
            "attn": spec.train_attn,
            "mlp": spec.train_mlp,
            "unembed": spec.train_unembed,
        }
        if not any(wanted.values()):
            raise RequestError(
                "train_mlp, train_attn and train_unembed are all False, so nothing would be "
                "trained: leave at least one of them on"
            )
        if spec.train_mlp and self._has_experts:
            raise RequestError(
                "this model's MLPs are mixtures of experts, which the trainer cannot adapt: create "
                "the model with train_mlp=False"
            )
        for kind, on in wanted.items():
            if on and kind not in self.kinds.values():
                raise RequestError(
                    f"this model has no linear layers for train_{kind}: create the model with "
                    f"train_{kind}=False"
                )
        return [name for name, kind in self.kinds.items() if wanted[kind]]

    def as_peft_names(self, modules: list[str]) -> list[str]:
        """The shortest target_modules by which PEFT finds exactly these."""
        leaves = {name.rpartition(".")[2] for name in modules}
        found = [name for name in self._all_linear if name.rpartition(".")[2] in leaves]
        return sorted(leaves if set(found) == set(modules) else modules)

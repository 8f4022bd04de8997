"""One adapter of the fake's model: its matrices, their gradients, AdamW, and its files."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.data import AdamStep, LoraSpec

Matrix = NDArray[np.float32]
MODULES = {
    "train_attn": "model.layers.0.self_attn.q_proj",
    "train_mlp": "model.layers.0.mlp.down_proj",
    "train_unembed": "lm_head",
}
_STATE = "training_state.safetensors"
_SPEC = "training_state.json"


@dataclass(eq=False, kw_only=True)
class FakeAdapter:
    """Matrices by "MODULE.lora_A" (rank, inputs) and "MODULE.lora_B" (outputs, rank)."""

    spec: LoraSpec
    matrices: dict[str, Matrix]
    gradients: dict[str, Matrix]
    moments: dict[str, Matrix]
    steps: int = 0

    @classmethod
    def fresh(cls, spec: LoraSpec, *, hidden: int, vocabulary: int) -> FakeAdapter:
        """A's are drawn from the seed, and B's are zero, so that nothing changes yet."""
        numbers = np.random.default_rng(spec.seed)
        matrices = {}
        for flag, module in MODULES.items():
            a = numbers.normal(size=(spec.rank, hidden)) / np.sqrt(hidden)
            if getattr(spec, flag):
                outputs = vocabulary if module == "lm_head" else hidden
                matrices[f"{module}.lora_A"] = a.astype(np.float32)
                matrices[f"{module}.lora_B"] = np.zeros((outputs, spec.rank), np.float32)
        return cls(spec=spec, matrices=matrices, gradients={}, moments={})

    def delta(self, module: str) -> NDArray[np.float64]:
        """What the adapter adds to a module's weight, (outputs, inputs); 0 if it leaves it."""
        if f"{module}.lora_A" not in self.matrices:
            return np.zeros(())
        scale = self.spec.alpha / self.spec.rank
        a, b = self.matrices[f"{module}.lora_A"], self.matrices[f"{module}.lora_B"]
        return scale * (b.astype(np.float64) @ a.astype(np.float64))

    def add_gradients(self, slopes: Mapping[str, NDArray[np.float64]]) -> None:
        """Add the gradients that follow from those of the whole weights, (outputs, inputs)."""
        scale = self.spec.alpha / self.spec.rank
        for module, slope in slopes.items():
            if f"{module}.lora_A" not in self.matrices:
                continue
            a, b = self.matrices[f"{module}.lora_A"], self.matrices[f"{module}.lora_B"]
            for name, more in (
                (f"{module}.lora_A", scale * b.T @ slope),
                (f"{module}.lora_B", scale * slope @ a.T),
            ):
                before = self.gradients.get(name, np.zeros((), np.float32))
                self.gradients[name] = before + more.astype(np.float32)

    def step(self, step: AdamStep) -> dict[str, float]:
        """AdamW with bias correction, as torch.optim.AdamW; the gradients are cleared."""
        if not self.gradients:
            raise TinkerError("there are no gradients to apply", fix="call forward_backward first")
        norm = float(
            np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in self.gradients.values()))
        )
        clip = min(1.0, step.grad_clip_norm / norm) if step.grad_clip_norm and norm else 1.0
        self.steps += 1
        first_correction = 1 - step.beta1**self.steps
        second_correction = 1 - step.beta2**self.steps
        for name, gradient in self.gradients.items():
            g = gradient * np.float32(clip)
            zero = np.zeros_like(g)
            first = self.moments.get(f"{name}.first", zero) * np.float32(step.beta1)
            second = self.moments.get(f"{name}.second", zero) * np.float32(step.beta2)
            first = first + np.float32(1 - step.beta1) * g
            second = second + np.float32(1 - step.beta2) * g * g
            self.moments[f"{name}.first"], self.moments[f"{name}.second"] = first, second
            kept = self.matrices[name] * np.float32(1 - step.learning_rate * step.weight_decay)
            change = (first / first_correction) / (np.sqrt(second / second_correction) + step.eps)
            self.matrices[name] = (kept - step.learning_rate * change).astype(np.float32)
        self.gradients = {}
        return {"grad_norm:mean": norm}

    def save(self, folder: Path, *, base_model: str, state: bool) -> None:
        """See Trainer.save."""
        if folder.exists():
            raise TinkerError(f"{folder} exists already", category="server", status=500)
        temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        try:
            temporary.mkdir(parents=True)
            self._write(temporary, base_model=base_model, state=state)
            os.rename(temporary, folder)  # noqa: PTH104 (which replaces nothing that is there)
        except OSError as error:
            raise TinkerError(
                f"the adapter could not be written to {folder}",
                category="server",
                status=500,
                why=error.strerror,
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _write(self, folder: Path, *, base_model: str, state: bool) -> None:
        config: dict[str, Any] = {
            "peft_type": "LORA",
            "base_model_name_or_path": base_model,
            "r": self.spec.rank,
            "lora_alpha": self.spec.alpha,
            "target_modules": [
                MODULES[f].rpartition(".")[2] for f in MODULES if getattr(self.spec, f)
            ],
            "bias": "none",
        }
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / _SPEC).write_text(
            json.dumps({"spec": asdict(self.spec), "steps": self.steps}), encoding="utf-8"
        )
        named = {f"base_model.model.{name}.weight": m for name, m in self.matrices.items()}
        save_file(named, folder / "adapter_model.safetensors")
        if state:
            kept = {f"moments.{name}": m for name, m in self.moments.items()}
            kept |= {f"gradients.{name}": g for name, g in self.gradients.items()}
            save_file(kept, folder / _STATE)

    @classmethod
    def load(cls, folder: Path, *, optimizer: bool, gradients: bool) -> FakeAdapter:
        """See Trainer.load."""
        try:
            written = json.loads((folder / _SPEC).read_text(encoding="utf-8"))
            named = load_file(folder / "adapter_model.safetensors")
            kept = load_file(folder / _STATE) if optimizer or gradients else {}
        except (OSError, ValueError, SafetensorError) as error:
            raise TinkerError(
                f"{folder} holds no adapter that can be trained on", why=str(error)
            ) from error
        ends = ("base_model.model.", ".weight")
        parts: dict[str, dict[str, Matrix]] = {"moments": {}, "gradients": {}}
        for name, values in kept.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = values
        return cls(
            spec=LoraSpec(**written["spec"]),
            matrices={n.removeprefix(ends[0]).removesuffix(ends[1]): m for n, m in named.items()},
            gradients=parts["gradients"] if gradients else {},
            moments=parts["moments"] if optimizer else {},
            steps=written["steps"] if optimizer else 0,
        )

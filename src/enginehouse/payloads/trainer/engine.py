"""LoRA adapters in training on one frozen base model."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from trainer.adapter import Adapter, Workspace
from trainer.batch import Batch, divide
from trainer.data import AdamStep, LoraSpec, LossRequest, LossResult
from trainer.errors import RequestError
from trainer.folder import read_folder, write_folder
from trainer.head import Head
from trainer.jobs import Job, Limits
from trainer.lora import LoraLinear, Routing
from trainer.losses import LOSSES
from trainer.targets import Targets

LOG = logging.getLogger("trainer")
_TOKENS = {"cpu": 1024, "cuda": 16384}  # of a pass
_LOGITS = {"cpu": 2**24, "cuda": 2**28}  # float32 numbers at a time
_NO_LIMIT = 2**20


@dataclass(frozen=True, kw_only=True)
class Info:
    """What the trainer can do: see TrainerInfo in enginehouse.tinker.trainers.base."""

    base_model: str
    architecture: str
    vocabulary_size: int
    max_length: int
    dtype: str
    device: str
    batches: bool
    losses: tuple[str, ...]


class Engine:
    """All methods block, and are for one thread. They raise RequestError, and then change nothing.

    An adapter has a name, its model_id, and lives in memory until it is unloaded.
    """

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        base_model: str,
        device: str = "auto",
        dtype: str = "auto",
    ) -> Engine:
        """Load the model, which takes seconds to minutes. Raises whatever transformers does.

        `base_model` is what saved adapters call it. `dtype` auto is that of the weights on a GPU,
        and float32 on a CPU. See also the class.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto" and device == "cpu":
            dtype = "float32"
        module = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        return cls(module.to(device), base_model=base_model)

    def __init__(self, module: Any, *, base_model: str, tokens_per_pass: int | None = None) -> None:
        """Take over a causal language model of transformers. Raises RuntimeError for an unfit one.

        `tokens_per_pass` bounds the activations in memory, but for single sequences that are
        longer.
        """
        self._base_model = base_model
        module.requires_grad_(False).eval()
        self._device, self._dtype = module.device, module.dtype
        self._trunk = module.base_model
        self._tokens = tokens_per_pass or _TOKENS[self._device.type]
        layer = module.get_output_embeddings()
        if not isinstance(layer, nn.Linear) or self._trunk is module:
            raise RuntimeError(f"{type(module).__name__} has no linear output layer to train with")
        name = next(name for name, part in module.named_modules() if part is layer)
        self._head = Head(layer, name=name, most_logits=_LOGITS[self._device.type])
        _require_plain_head(module, self._trunk, layer)
        self._targets = Targets(module, head=name)
        self._shapes = {
            name: (part.in_features, part.out_features)
            for name, part in module.named_modules()
            if name in self._targets.kinds
        }
        self._routing = Routing()
        for name in self._targets.kinds:
            if name != self._head.name:
                _replace(module, name, self._routing)
        limit = getattr(module.config.get_text_config(), "max_position_embeddings", None)
        embedded = module.get_input_embeddings().weight.shape[0]
        self._limits = Limits(
            vocabulary=min(embedded, layer.out_features), length=limit or _NO_LIMIT
        )
        self.info = Info(
            base_model=base_model,
            architecture=type(module).__name__,
            vocabulary_size=self._limits.vocabulary,
            max_length=self._limits.length,
            dtype=str(self._dtype).removeprefix("torch."),
            device=str(self._device),
            batches=True,
            losses=tuple(LOSSES),
        )
        self._adapters: dict[str, Adapter] = {}

    def create(self, model_id: str, spec: LoraSpec) -> LoraSpec:
        """Make an adapter that changes nothing yet; replaces one of that name.

        Returns its spec, with the seed that was drawn.
        """
        if spec.seed is None:
            spec = replace(spec, seed=secrets.randbits(63))
        adapter = self._blank(spec)
        adapter.initialise()
        self._adapters[model_id] = adapter
        return spec

    def _blank(self, spec: LoraSpec) -> Adapter:
        if spec.rank < 1:
            raise RequestError(f"the rank is {spec.rank}, and must be 1 at least")
        shapes = {module: self._shapes[module] for module in self._targets.chosen(spec)}
        return Adapter(spec, shapes, device=self._device)

    def _adapter(self, model_id: str) -> Adapter:
        if model_id not in self._adapters:
            raise RequestError(
                f"there is no adapter {model_id!r} in memory: create or load it first"
            )
        return self._adapters[model_id]

    def compute(self, requests: Sequence[LossRequest]) -> list[LossResult | RequestError]:
        """Compute requests together, each as if alone; its gradients are added to its adapter's."""
        results: dict[int, LossResult | RequestError] = {}
        jobs: dict[int, Job] = {}
        for number, request in enumerate(requests):
            try:
                adapter = self._adapter(request.model_id)
                jobs[number] = Job(request, adapter, limits=self._limits)
            except RequestError as error:
                results[number] = error
        for backward in (False, True):
            chosen = {number: job for number, job in jobs.items() if job.backward is backward}
            computed = self._run(list(chosen.values()))
            results |= {number: computed[job] for number, job in chosen.items()}
        return [results[number] for number in range(len(requests))]

    def _run(self, jobs: Sequence[Job]) -> Mapping[Job, LossResult | RequestError]:
        """Compute jobs that all want gradients, or of which none does.

        An adapter's jobs add to one gradient. If one of them turns out to have failed, the others
        are computed again without it.
        """
        results: dict[Job, LossResult | RequestError] = {}
        workspaces: dict[Adapter, Workspace] = {}
        for job in jobs:
            if job.adapter not in workspaces:
                workspaces[job.adapter] = Workspace(
                    job.adapter, dtype=self._dtype, backward=job.backward
                )
        left = [job for adapter in workspaces for job in jobs if job.adapter is adapter]
        while left:
            self._compute(left, {job.adapter: workspaces[job.adapter] for job in left})
            results |= {job: job.result() for job in left}
            failed = {job for job in left if isinstance(results[job], RequestError)}
            spoilt = {job.adapter for job in failed if job.backward}
            left = [job for job in left if job.adapter in spoilt and job not in failed]
        for adapter in {job.adapter for job in jobs if isinstance(results[job], LossResult)}:
            if (gradient := workspaces[adapter].gradient) is not None:
                adapter.add(gradient)
        return results

    def _compute(self, jobs: Sequence[Job], workspaces: Mapping[Adapter, Workspace]) -> None:
        """Compute jobs from the beginning; in smaller passes from now on, if memory runs out."""
        while True:
            try:
                for workspace in workspaces.values():
                    workspace.clear()
                for job in jobs:
                    job.begin()
                for lines in divide(jobs, tokens=self._tokens):
                    self._pass(Batch(lines, workspaces=workspaces, device=self._device))
            except torch.OutOfMemoryError:
                longest = max(len(row.tokens) for job in jobs for row in job.rows)
                if self._tokens <= longest:
                    raise
                self._tokens = max(self._tokens // 2, longest)
                LOG.warning("out of memory: from now on %d tokens in a pass", self._tokens)
            else:
                return
            torch.cuda.empty_cache()  # here, where the error no longer holds the activations

    def _pass(self, batch: Batch) -> None:
        backward = batch.backward
        self._routing.groups = batch.groups_of_rows
        with torch.set_grad_enabled(backward):
            hidden = self._trunk(input_ids=batch.ids, use_cache=False).last_hidden_state
        chosen = hidden.detach().flatten(0, 1)[batch.positions]
        if batch.by_sequence:
            batch.weigh_sequences(self._head.logprobs(chosen, batch))
        logprobs, by_chosen = self._head.evaluate(chosen, batch)
        batch.deliver(logprobs)
        if backward and hidden.requires_grad:
            by_hidden = torch.zeros_like(hidden)
            by_hidden.flatten(0, 1)[batch.positions] = by_chosen
            hidden.backward(by_hidden)
        self._routing.groups = ()  # holds no adapter that may be unloaded

    def optim_step(self, model_id: str, step: AdamStep) -> dict[str, float]:
        """Apply and clear the gradients. Returns grad_norm:mean, the norm before clipping."""
        return {"grad_norm:mean": self._adapter(model_id).optimise(step)}

    def drop_gradients(self, model_id: str) -> None:
        """Forget the gradients since the last step."""
        self._adapter(model_id).gradient = None

    def save(self, model_id: str, folder: Path, *, state: bool) -> None:
        """Write a new PEFT folder (folder.py), with `state` all that training goes on from.

        Raises OSError, for instance when the disk is full, and then leaves nothing.
        """
        adapter = self._adapter(model_id)
        write_folder(folder, adapter, config=self._peft_config(adapter), state=state)

    def load(self, model_id: str, folder: Path, *, optimizer: bool, gradients: bool) -> LoraSpec:
        """Make an adapter from a folder that `save` wrote; replaces one of that name.

        Without `optimizer` its optimizer begins afresh; `gradients` brings back those that had not
        been applied.
        """
        adapter = read_folder(folder, make=self._blank, optimizer=optimizer, gradients=gradients)
        self._adapters[model_id] = adapter
        return adapter.spec

    def unload(self, model_id: str) -> None:
        """Forget an adapter. Idempotent."""
        self._adapters.pop(model_id, None)

    def _peft_config(self, adapter: Adapter) -> dict[str, Any]:
        alpha = float(adapter.spec.alpha)  # PEFT and vLLM declare an integer
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self._base_model,
            "r": adapter.spec.rank,
            "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
            "lora_dropout": 0.0,
            "target_modules": self._targets.as_peft_names(list(adapter.places)),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "modules_to_save": None,
            "use_dora": False,
            "use_rslora": False,
        }


def _require_plain_head(module: Any, trunk: Any, layer: nn.Linear) -> None:
    """Refuse models that do something to logits after the output layer, such as a soft cap."""
    ids = torch.arange(4, device=layer.weight.device)[None]
    with torch.inference_mode():
        logits = module(input_ids=ids, use_cache=False).logits
        plain = layer(trunk(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.allclose(logits, plain, rtol=1e-2, atol=1e-2):
        raise RuntimeError(
            f"{type(module).__name__} changes its logits after the output layer, which the trainer "
            "does not do"
        )


def _replace(module: nn.Module, name: str, routing: Routing) -> None:
    parent, _, leaf = name.rpartition(".")
    owner = module.get_submodule(parent)
    setattr(owner, leaf, LoraLinear(getattr(owner, leaf), name=name, routing=routing))

"""LoRA adapters, loaded through PEFT into the running model; each row of a batch names its own."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from hf_server.errors import ApiError, refused
from hf_server.model import Model

LOG = logging.getLogger("hf_server")


class Adapters:
    """The adapters that PEFT holds, under keys of its own. For the generating thread only."""

    def __init__(self, model: Model, *, most: int, largest_rank: int) -> None:
        self._model = model
        self._most = most
        self._largest_rank = largest_rank
        self._peft: PeftModel | None = None
        self._count = itertools.count()
        self._loaded: set[str] = set()

    def load(self, name: str, path: str) -> str:
        """Load an adapter and return its key. Raises ApiError: 404 if there is none at `path`."""
        folder = Path(path)
        self._check(name, folder)
        key = f"adapter{next(self._count)}"
        how: dict[str, Any] = {"adapter_name": key, "autocast_adapter_dtype": False}
        try:
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self._model.module, folder, **how)
            else:
                self._peft.load_adapter(folder, **how)
        except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
            LOG.exception("loading adapter %s from %s", name, path)
            if self._peft is not None and key in self._peft.peft_config:
                self._peft.delete_adapter(key)
            raise refused(f"Loading lora {name} failed: {error}", param="lora_path") from error
        self._peft.eval()
        self._hook()
        self._loaded.add(key)
        return key

    def unload(self, key: str) -> None:
        """Drop an adapter that no row uses."""
        assert self._peft is not None
        self._peft.delete_adapter(key)
        self._loaded.discard(key)

    def _check(self, name: str, folder: Path) -> None:
        try:
            config = json.loads((folder / "adapter_config.json").read_bytes())
        except OSError as error:
            raise ApiError(
                404,
                f"Loading lora {name} failed: No adapter found for {folder} (no adapter_config.json"
                f" can be read there: {error.strerror})",
                param="lora_path",
            ) from error
        except (ValueError, RecursionError) as error:
            raise refused(f"Loading lora {name} failed: {error}", param="lora_path") from error
        if config.get("peft_type") != "LORA":
            raise refused(f"{name} is not a LoRA adapter but {config.get('peft_type')}")
        if config.get("modules_to_save"):
            raise refused(f"{name} replaces whole modules: {config['modules_to_save']}")
        rank = max([config.get("r") or 0, *(config.get("rank_pattern") or {}).values()])
        if rank > self._largest_rank:
            raise refused(f"LoRA rank {rank} is greater than max_lora_rank {self._largest_rank}")
        if len(self._loaded) >= self._most:
            raise refused(f"{self._most} adapters are loaded already (max_loras): unload one")

    def _hook(self) -> None:
        """Tell every LoRA layer which adapter each row uses, and the output layer's, each place.

        PEFT's own way hooks every layer again for each pass, which costs milliseconds.
        """
        head = self._model.hook_head()  # first: its places are chosen before they are told
        for module in self._model.module.modules():
            if isinstance(module, LoraLayer) and not getattr(module, "_knows_rows", False):
                tell = self._tell_places if module is head else self._tell
                module.register_forward_pre_hook(tell, with_kwargs=True)
                module._knows_rows = True  # noqa: SLF001 - set by us

    def _tell(
        self, _: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return inputs, {**named, "adapter_names": self._model.row_adapters}

    def _tell_places(
        self, _: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return inputs, {**named, "adapter_names": self._model.place_adapters}

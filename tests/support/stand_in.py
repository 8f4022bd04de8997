"""As much of torch and of a trainer as the room `training` uses, without torch.

Devices, memory and random numbers behave as torch's do; there is no arithmetic. What a real torch
does is for the engine-marked tests to say.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Device:
    """`torch.device`."""

    type: str
    index: int = 0

    def __str__(self) -> str:
        return f"{self.type}:{self.index}"


class OutOfMemoryError(RuntimeError):
    """`torch.OutOfMemoryError`."""


class Storage:
    """`torch.UntypedStorage`: bytes on a device."""

    def __init__(self, torch: Torch, size: int, *, device: str) -> None:
        self.device = Device(device)
        self.bytes = bytearray()
        self.fixed = False
        self._torch = torch
        self.resize_(size)

    def nbytes(self) -> int:
        """The size."""
        return len(self.bytes)

    def resizable(self) -> bool:
        """Whether the memory is torch's own."""
        return not self.fixed

    def resize_(self, size: int) -> None:
        """New memory holds nothing sensible."""
        if self.device.type == "cuda":
            self._torch.take(size - len(self.bytes))
        self.bytes = self.bytes[:size].ljust(size, b"\xee")

    def copy_(self, other: Storage) -> None:
        """Take its content."""
        assert len(other.bytes) == len(self.bytes)
        self.bytes[:] = other.bytes


class Tensor:
    """A view of all bytes of a storage."""

    def __init__(self, storage: Storage) -> None:
        self.grad: Tensor | None = None
        self.storage = storage

    def untyped_storage(self) -> Storage:
        """Tied tensors have the same one."""
        return self.storage

    @property
    def content(self) -> bytes:
        """A copy of the bytes."""
        return bytes(self.storage.bytes)


class Wrapper(Tensor):
    """A tensor subclass around others, without memory of its own."""

    def __init__(self) -> None:
        self.grad = None

    def untyped_storage(self) -> Storage:
        """As torch refuses it."""
        raise NotImplementedError("Cannot access storage")


class Torch(ModuleType):
    """The module. Its GPU has room for `room` bytes; what is freed stays reserved, as in torch."""

    def __init__(self, *, room: int = 1000) -> None:
        super().__init__("torch")
        self.room = room
        self.used = 0
        self.reserved = 0
        self.random = random.Random(1)
        self.cuda_random = random.Random(2)
        self.Tensor, self.UntypedStorage = Tensor, partial(Storage, self)
        self.cuda = _Cuda(self)
        self.distributed = _Distributed()

    def tensor(self, content: bytes, *, device: str = "cuda") -> Tensor:
        """One with memory of its own."""
        storage = Storage(self, len(content), device=device)
        storage.bytes[:] = content
        return Tensor(storage)

    def take(self, size: int) -> None:
        """Allocate (or, below 0, free) memory of the GPU."""
        if self.used + size > self.room:
            raise OutOfMemoryError("CUDA out of memory")
        self.used += size
        self.reserved = max(self.reserved, self.used)

    def get_rng_state(self) -> object:
        """The CPU generator's."""
        return self.random.getstate()

    def set_rng_state(self, state: Any) -> None:
        """Put it back."""
        self.random.setstate(state)


class _Cuda:
    def __init__(self, torch: Torch) -> None:
        self.torch = torch
        self.initialized = True

    def is_initialized(self) -> bool:
        return self.initialized

    def device_count(self) -> int:
        return 1

    def memory_reserved(self, device: int) -> int:
        return self.torch.reserved

    def empty_cache(self) -> None:
        self.torch.reserved = self.torch.used

    def get_rng_state_all(self) -> list[object]:
        assert self.initialized
        return [self.torch.cuda_random.getstate()]

    def set_rng_state_all(self, states: list[Any]) -> None:
        self.torch.cuda_random.setstate(states[0])


class _Distributed(ModuleType):
    def __init__(self) -> None:
        super().__init__("torch.distributed")
        self.processes: int | None = None

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return self.processes is not None

    def get_world_size(self) -> int:
        assert self.processes is not None
        return self.processes


class Model:
    """Two tied parameters, one of them with a gradient, and a buffer."""

    def __init__(self, torch: Torch, *, device: str = "cuda") -> None:
        self.first = torch.tensor(b"w" * 100, device=device)
        self.tied = Tensor(self.first.storage)
        self.buffer = torch.tensor(b"b" * 10, device=device)
        self.first.grad = torch.tensor(b"g" * 100, device=device)
        self.saves = 0

    def parameters(self) -> Iterator[Any]:
        """The tied one comes as an object of its own."""
        yield self.first
        yield self.tied

    def buffers(self) -> Iterator[Any]:
        """One."""
        yield self.buffer

    def save_pretrained(self, folder: Path) -> None:
        """A checkpoint as small as one can be."""
        assert self.first.content, "it is saved before its memory is taken away"
        self.saves += 1
        random.random()  # saving may draw random numbers, too
        (folder / "config.json").write_text('{"model_type": "llama"}')
        (folder / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")


class Tokenizer:
    """What a checkpoint needs besides."""

    def save_pretrained(self, folder: Path) -> None:
        """Its files."""
        (folder / "tokenizer.json").write_text("{}")
        (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')


class Optimizer:
    """Two moments of each parameter, in a mapping and in a list, and a step on the CPU."""

    def __init__(self, torch: Torch, model: Model, *, device: str = "cuda") -> None:
        self.moment = torch.tensor(b"1" * 100, device=device)
        self.second = torch.tensor(b"2" * 100, device=device)
        self.steps = torch.tensor(b"s" * 8, device="cpu")
        inner = {"exp_avg": self.moment, "list": [self.second], "step": self.steps, "rho": 0.5}
        self.state = {model.first: inner}
        self.param_groups = [{"params": list(model.parameters()), "lr": 0.1}]

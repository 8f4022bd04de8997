"""Lends a trainer's GPU memory to another process for a while."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec


class Vacated(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes moved to the host, and bytes by which torch's allocator shrank on the GPUs for it.

    `freed_bytes` is None without CUDA.
    """

    moved_bytes: int
    freed_bytes: int | None


@contextmanager
def vacated(
    holders: Iterable[Any], *, staying: Sequence[str] = ("cpu", "meta")
) -> Iterator[Vacated]:
    """Keep what `holders` have on a GPU in the host's memory for the block; then move it back.

    A holder is a module (parameters, their gradients, buffers) or an optimizer (its state). Devices
    in `staying` are left alone. The storage of the tensors is exchanged, not the tensors: each is
    afterwards the same object with the same bits, and those that shared memory (tied weights,
    views) share it again; only the address may differ. Using a tensor within the block is an error
    in torch. Raises torch's error if a GPU has no room for the return. An interrupt between a
    tensor and its return would lose it: see `interrupts_deferred`.
    """
    import torch

    moved: list[tuple[Any, Any]] = []
    before = _reserved(torch)
    try:
        for storage in _storages(torch, holders, staying=staying):
            copy = torch.UntypedStorage(storage.nbytes(), device="cpu")
            copy.copy_(storage)
            moved.append((storage, copy))
            storage.resize_(0)
        gc.collect()
        if before is not None:
            torch.cuda.empty_cache()
        freed = None if before is None else max(0, before - (_reserved(torch) or 0))
        yield Vacated(moved_bytes=sum(copy.nbytes() for _, copy in moved), freed_bytes=freed)
    finally:
        _bring_back(moved)


def _bring_back(moved: list[tuple[Any, Any]]) -> None:
    while moved:
        storage, copy = moved[-1]
        try:
            storage.resize_(copy.nbytes())
        except RuntimeError as error:
            error.add_note(
                f"{sum(copy.nbytes() for _, copy in moved) / 1e9:.1f} GB of the trainer's state "
                "cannot return to the GPU: another process has taken the memory"
            )
            raise
        storage.copy_(copy)
        moved.pop()


def _storages(torch: Any, holders: Iterable[Any], *, staying: Sequence[str]) -> Iterator[Any]:
    """Every storage once, provided that the caller empties each before it takes the next."""
    for tensor in _tensors(torch, holders):
        storage = None
        with suppress(NotImplementedError, RuntimeError):  # a wrapper around other tensors has none
            storage = tensor.untyped_storage()
        if storage is None or storage.device.type in staying:
            continue
        if (
            storage.nbytes() and storage.resizable()
        ):  # memory that torch does not own cannot be freed
            yield storage


def _tensors(torch: Any, holders: Iterable[Any]) -> Iterator[Any]:
    for holder in holders:
        if hasattr(holder, "param_groups"):
            parameters = [p for group in holder.param_groups for p in group["params"]]
            yield from _within(torch, [holder.state, holder.param_groups])
        else:
            parameters = list(holder.parameters())
            yield from holder.buffers()
        yield from parameters
        yield from (p.grad for p in parameters if p.grad is not None)


def _within(torch: Any, value: Any) -> Iterator[Any]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _within(torch, inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _within(torch, inner)


def _reserved(torch: Any) -> int | None:
    if not torch.cuda.is_initialized():
        return None
    devices = range(torch.cuda.device_count())
    return sum(int(torch.cuda.memory_reserved(device)) for device in devices)

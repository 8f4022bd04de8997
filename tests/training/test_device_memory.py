"""What is on a GPU goes to the host and comes back to the bit."""

from __future__ import annotations

import pytest
from tests.support.stand_in import Model, Optimizer, OutOfMemoryError, Torch, Wrapper

from enginehouse.training.device_memory import Vacated, vacated

SIZE = 100 + 100 + 10 + 100 + 100  # weights once though tied, gradient, buffer, two moments


def tensors(model: Model, optimizer: Optimizer) -> list[object]:
    """Everything that a loop computes with."""
    return [
        *(model.first, model.tied, model.first.grad, model.buffer),
        *(optimizer.moment, optimizer.second, optimizer.steps),
    ]


@pytest.fixture
def model(torch: Torch) -> Model:
    """On the GPU."""
    return Model(torch)


@pytest.fixture
def optimizer(torch: Torch, model: Model) -> Optimizer:
    """On the GPU."""
    return Optimizer(torch, model)


@pytest.mark.slow
def test_everything_goes_and_comes_back(torch: Torch, model: Model, optimizer: Optimizer):
    """The same objects with the same content, tied ones still tied; the GPU is empty meanwhile."""
    before = [(id(t), id(t.storage), t.content) for t in tensors(model, optimizer)]
    with vacated([model, optimizer]) as vacant:
        assert (torch.used, torch.reserved) == (0, 0)
        assert optimizer.steps.content == b"s" * 8
    assert vacant == Vacated(moved_bytes=SIZE, freed_bytes=SIZE)
    assert [(id(t), id(t.storage), t.content) for t in tensors(model, optimizer)] == before
    assert torch.used == SIZE


@pytest.mark.slow
def test_what_the_cache_held_is_freed_with_it(torch: Torch, model: Model):
    """Memory that torch had reserved for activations counts as freed; it was not moved."""
    torch.take(300)
    torch.take(-300)
    with vacated([model]) as vacant:
        pass
    assert vacant == Vacated(moved_bytes=210, freed_bytes=510)


@pytest.mark.slow
def test_nothing_moves_on_the_cpu(torch: Torch):
    """No byte is copied; without CUDA nothing is measured."""
    torch.cuda.initialized = False
    model = Model(torch, device="cpu")
    with vacated([model, Optimizer(torch, model, device="cpu")]) as vacant:
        assert model.first.content == b"w" * 100
    assert vacant == Vacated(moved_bytes=0, freed_bytes=None)


@pytest.mark.slow
def test_it_comes_back_after_an_error(torch: Torch, model: Model):
    """An exception in the block passes, with everything back."""
    with pytest.raises(KeyboardInterrupt), vacated([model]):
        raise KeyboardInterrupt
    assert model.first.content == b"w" * 100
    assert torch.used == 210


def test_a_host_without_room_changes_nothing(
    torch: Torch, model: Model, monkeypatch: pytest.MonkeyPatch
):
    """What had been moved until then is back; the error is torch's."""
    make, calls = torch.UntypedStorage, 0

    def limited(size: int, *, device: str) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("can't allocate memory")
        return make(size, device=device)

    monkeypatch.setattr(torch, "UntypedStorage", limited)
    with pytest.raises(RuntimeError, match="can't allocate"), vacated([model]):
        raise AssertionError("never reached")
    assert (model.first.content, model.buffer.content) == (b"w" * 100, b"b" * 10)


@pytest.mark.slow
def test_memory_that_cannot_be_freed_stays(torch: Torch, model: Model):
    """Memory of another library's, and wrappers without memory of their own, are left alone."""
    model.buffer.storage.fixed = True
    model.parameters = lambda: iter([model.first, Wrapper()])
    with vacated([model]) as vacant:
        assert model.buffer.content == b"b" * 10
    assert vacant.moved_bytes == 200


@pytest.mark.slow
def test_a_gpu_that_is_full_meanwhile(torch: Torch, model: Model):
    """Torch's own error, which says how much could not return and why."""
    with pytest.raises(OutOfMemoryError, match="CUDA out of memory") as caught, vacated([model]):
        torch.take(900)
    assert "another process has taken the memory" in caught.value.__notes__[0]

"""What is saved and loaded again, and what is forgotten."""

from __future__ import annotations

from enginehouse.testing.trainer_cases.base import (
    STEP,
    Subject,
    apart,
    case,
    near,
    refused,
)
from enginehouse.tinker.data import LoraSpec
from enginehouse.weights.peft_folder import read_peft_folder


@case
async def resume_is_exact(subject: Subject) -> None:
    """Loaded with its optimizer, a model continues as if it had never been away."""
    model = await subject.model()
    await subject.train(model, steps=3)
    await subject.trainer.save(model, subject.folder / "saved", state=True)
    await subject.train(model, steps=3, seed=20)
    expected = await subject.logprobs(model)
    await subject.trainer.unload(model)
    spec = await subject.trainer.load(
        model, subject.folder / "saved", optimizer=True, gradients=True
    )
    assert spec == LoraSpec(rank=4, seed=1)
    await subject.train(model, steps=3, seed=20)
    near(expected, await subject.logprobs(model))


@case
async def load_replaces_and_copies(subject: Subject) -> None:
    """A folder can be loaded under another name, and over a model that has moved on."""
    model = await subject.model()
    await subject.train(model)
    saved = await subject.logprobs(model)
    await subject.trainer.save(model, subject.folder / "saved", state=False)
    await subject.train(model, seed=30)
    apart(saved, await subject.logprobs(model))
    for name in (model, subject.id("copy")):
        await subject.trainer.load(name, subject.folder / "saved", optimizer=False, gradients=False)
        near(saved, await subject.logprobs(name))


@case
async def optimizer_can_begin_afresh(subject: Subject) -> None:
    """Without its optimizer a loaded model has the same weights, and takes another next step."""
    model = await subject.model()
    await subject.train(model, steps=4)
    await subject.trainer.save(model, subject.folder / "saved", state=True)
    after = []
    for optimizer in (True, False):
        await subject.trainer.load(
            model, subject.folder / "saved", optimizer=optimizer, gradients=False
        )
        await subject.train(model, steps=1, seed=40)
        after.append(await subject.logprobs(model))
    apart(after[0], after[1])


@case
async def pending_gradients_are_saved(subject: Subject) -> None:
    """Gradients that were not applied are pending again, or dropped, as the caller says."""
    model = await subject.model()
    await subject.train(model)
    await subject.compute(model, subject.datum(seed=7))
    await subject.trainer.save(model, subject.folder / "saved", state=True)
    await subject.compute(model, subject.datum(seed=8))
    await subject.trainer.optim_step(model, STEP)
    expected = await subject.logprobs(model)
    await subject.trainer.load(model, subject.folder / "saved", optimizer=True, gradients=True)
    await subject.compute(model, subject.datum(seed=8))
    await subject.trainer.optim_step(model, STEP)
    near(expected, await subject.logprobs(model))
    await subject.trainer.load(model, subject.folder / "saved", optimizer=True, gradients=False)
    await subject.compute(model, subject.datum(seed=8))
    await subject.trainer.optim_step(model, STEP)
    apart(expected, await subject.logprobs(model))


@case
async def saving_changes_nothing(subject: Subject) -> None:
    """A save between two requests leaves gradients, optimizer and weights alone."""
    trained = []
    for name in ("a", "b"):
        model = await subject.model(name)
        await subject.compute(model)
        if name == "b":
            await subject.trainer.save(model, subject.folder / "saved", state=True)
        await subject.trainer.optim_step(model, STEP)
        trained.append(await subject.logprobs(model))
    near(trained[0], trained[1])


@case
async def saved_folder_is_a_peft_adapter(subject: Subject) -> None:
    """What is saved is a LoRA that engines load, of the rank and alpha that were asked for."""
    model = await subject.model("a", LoraSpec(rank=6, seed=2))
    await subject.train(model)
    folder = subject.folder / "deep" / "saved"
    await subject.trainer.save(model, folder, state=False)
    adapter = read_peft_folder(folder)
    assert (adapter.rank, adapter.alpha, adapter.is_zero) == (6, 32.0, False)


@case
async def save_is_all_or_nothing(subject: Subject) -> None:
    """Where it cannot be written nothing is left behind, and the model works on."""
    model = await subject.model()
    await subject.train(model)
    before = await subject.logprobs(model)
    (subject.folder / "file").write_text("")
    error = None
    try:
        await subject.trainer.save(model, subject.folder / "file" / "saved", state=True)
    except Exception as raised:  # noqa: BLE001 (which error it is follows below)
        error = raised
    assert type(error).__name__ == "TinkerError", f"{error!r} instead of TinkerError"
    assert sorted(path.name for path in subject.folder.iterdir()) == ["file"]
    near(before, await subject.logprobs(model))


@case
async def wrong_folders_are_refused(subject: Subject) -> None:
    """A folder without an adapter is an error of the request; a model of that name stays."""
    model = await subject.model()
    await subject.train(model)
    before = await subject.logprobs(model)
    (subject.folder / "empty").mkdir()
    for name in ("missing", "empty"):
        await refused(
            subject.trainer.load(model, subject.folder / name, optimizer=False, gradients=False)
        )
    near(before, await subject.logprobs(model))


@case
async def unloading_is_idempotent(subject: Subject) -> None:
    """An unloaded model is gone; to unload it again, or one that never was, is no error."""
    model = await subject.model()
    await subject.trainer.unload(model)
    await subject.trainer.unload(model)
    await subject.trainer.unload(subject.id("never"))
    await refused(subject.compute(model))
    await refused(subject.trainer.optim_step(model, STEP))

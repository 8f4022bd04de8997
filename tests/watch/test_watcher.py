"""A watch with a stand-in for the server: what is evaluated, when, how often, and what is kept."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path

import msgspec
import pytest
from tests.support.stand_in_deployment import ITEMS, Place, until, write_checkpoint

from enginehouse.core.errors import (
    AdapterError,
    ConfigurationError,
    ConnectionFailedError,
    ModelError,
    RunLockedError,
    ServerGoneError,
    StartError,
    StoreError,
    UnknownNameError,
    WeightsError,
)
from enginehouse.evaluation.compare import compare_runs
from enginehouse.results.curve import Curve, Kind
from enginehouse.store.layout import Layout
from enginehouse.store.runs import RunStatus, list_runs, open_run
from enginehouse.watch import watcher as watching_module
from enginehouse.watch.checkpoints import Finished


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A folder to watch, and what stands in for servers."""
    place = Place(tmp_path)
    monkeypatch.setattr("enginehouse.watch.host.open_deployment", place.open_deployment)
    return place


def scores(curve: Curve) -> dict[str, float | None]:
    """Every point's score by name, in the curve's order."""
    return {
        point.name: point.tasks[0].score.value if point.tasks and point.tasks[0].score else None
        for point in curve.points
    }


async def test_what_is_there_is_evaluated_once(place: Place):
    """The base first, then by step, on one server; a second watch asks nothing and starts none."""
    place.adapter("lora-30", 6)
    place.adapter("lora-5", 5)
    place.checkpoint("checkpoint-20", 7)
    curve = await place.watch()
    assert place.targets == ["base", "lora-5", "checkpoint-20", "lora-30"]
    assert len(place.started) == 1
    assert scores(curve) == {"lora-5": 0.5, "checkpoint-20": 0.7, "lora-30": 0.6}
    assert curve.base is not None
    assert curve.base.tasks[0].score.value == 0.4
    assert [p.kind for p in curve.points] == [Kind.ADAPTER, Kind.CHECKPOINT, Kind.ADAPTER]
    assert all(place.times(name) == [1] * ITEMS for name in set(place.targets))
    assert await place.watch() == curve
    assert (len(place.targets), len(place.started)) == (4, 1)
    assert len(list_runs(Layout.from_environment())) == 4


async def test_the_last_step_first(place: Place):
    """With order "last", and only what the patterns include."""
    for step, quality in ((5, 5), (30, 6), (20, 7)):
        place.adapter(f"step_{step}", quality)
    place.adapter("other-40", 8)
    curve = await place.watch(order="last", include=["step_*"])
    assert place.targets == ["base", "step_30", "step_20", "step_5"]
    assert [point.name for point in curve.points] == ["step_5", "step_20", "step_30"]


async def test_a_task_that_there_is_not(place: Place):
    """Refused at once: no folder is to blame for it, and none becomes a point."""
    place.adapter("lora-5", 5)
    with pytest.raises(UnknownNameError, match="gsm9k"):
        await place.watch(tasks=["gsm9k"])
    assert place.started == []


async def test_differences_are_those_of_the_runs(place: Place):
    """From the base and from the best before it, in the direction point - other."""
    for step, quality in ((1, 6), (2, 8), (3, 5), (4, 8)):
        place.checkpoint(f"step-{step}", quality)
    curve = await place.watch()
    at = {point.name: point.tasks[0] for point in curve.points}
    assert [at[f"step-{n}"].from_base.result.difference for n in (1, 2, 3, 4)] == pytest.approx(
        [0.2, 0.4, 0.1, 0.4]
    )
    assert at["step-1"].from_best is None
    best = [(at[f"step-{n}"].from_best.name) for n in (2, 3, 4)]
    assert best == ["step-1", "step-2", "step-2"]
    assert at["step-3"].from_best.result.difference == pytest.approx(-0.3)
    assert curve.tasks[0].best == "step-2"
    layout = Layout.from_environment()
    runs = [open_run(layout, point.run) for point in (curve.base, curve.points[2])]
    assert compare_runs(*runs).tasks[0].headline == at["step-3"].from_base.result


async def test_the_files_are_what_was_returned(place: Place, tmp_path: Path):
    """curve.json is the curve; the page is where it was asked for, and names every point."""
    place.adapter("lora-5", 5)
    page = tmp_path / "pages" / "c.html"
    curve = await place.watch(html=page)
    assert page.read_text().count("lora-5") >= 2
    (folder,) = Layout.from_environment().watches.iterdir()
    assert msgspec.json.decode((folder / "curve.json").read_bytes(), type=Curve) == curve


async def test_an_overwritten_checkpoint_replaces_its_point(place: Place):
    """The same name with new content is evaluated again, the others are not."""
    place.checkpoint("step-1", 5)
    place.adapter("lora-2", 6)
    await place.watch()
    place.checkpoint("step-1", 9)
    (place.out / "lora-2" / "adapter_config.json").touch()
    curve = await place.watch()
    assert scores(curve) == {"step-1": 0.9, "lora-2": 0.6}
    assert place.targets == ["base", "step-1", "lora-2", "step-1"]


async def test_an_overwritten_base_is_evaluated_again(place: Place):
    """Its old run is no base for anything new."""
    place.checkpoint("step-1", 5)
    first = await place.watch()
    write_checkpoint(place.base, seed=99)
    second = await place.watch()
    assert place.targets == ["base", "step-1", "base"]
    assert first.base.run != second.base.run
    assert second.points[0].tasks[0].from_base.result is not None


async def test_what_cannot_be_loaded_is_a_point_with_a_reason(place: Place):
    """The others are evaluated; it is tried again only when asked to, or with new content."""
    place.adapter("lora-1", 5)
    place.adapter("lora-2", 6)
    place.checkpoint("step-3", 7)
    place.refusals = {
        "lora-1": [AdapterError("it holds NaN", why="q_proj", fix="train less")] * 2,
        "step-3": [WeightsError("it does not fit")],
    }
    curve = await place.watch()
    assert scores(curve) == {"lora-1": None, "lora-2": 0.6, "step-3": None}
    assert curve.points[0].failure == "it holds NaN\n  why:  q_proj\n  next: train less"
    assert curve.points[2].failure == "it does not fit"
    assert curve.points[0].run is None
    assert len(list_runs(Layout.from_environment())) == 2
    await place.watch()
    assert len(place.targets) == 4
    assert len(place.started) == 1
    curve = await place.watch(retry_failed=True)
    assert place.targets[4:] == ["lora-1", "step-3"]
    assert scores(curve) == {"lora-1": None, "lora-2": 0.6, "step-3": 0.7}
    place.adapter("lora-1", 8)
    assert scores(await place.watch())["lora-1"] == 0.8


async def test_a_broken_adapter_does_not_need_a_server(place: Place):
    """A pickle, nonsense, another kind: refused with the reason, whatever else there is."""
    folder = place.adapter("lora-1", 5)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    place.adapter("lora-2", 6)
    config = place.adapter("lora-3", 6) / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_type": "IA3"}))
    curve = await place.watch()
    assert scores(curve) == {"lora-1": None, "lora-2": 0.6, "lora-3": None}
    assert "a pickle, which may run code" in curve.points[0].failure
    assert "holds no LoRA" in curve.points[2].failure
    assert place.targets == ["base", "lora-2"]


async def test_a_server_that_is_lost_over_a_swap(place: Place):
    """It is started again, the checkpoint is tried once more; then the next one's turn comes."""
    for step in (1, 2, 3):
        place.checkpoint(f"step-{step}", 4 + step)
    lost = [WeightsError("no weights are back", restored=False) for _ in range(2)]
    place.refusals = {"step-1": [ConnectionFailedError("refused")], "step-2": lost}
    curve = await place.watch()
    assert place.targets == ["base", "step-1", "step-1", "step-2", "step-2", "step-3"]
    assert len(place.started) == 4
    assert scores(curve) == {"step-1": 0.5, "step-2": None, "step-3": 0.7}


async def test_a_server_that_is_given_up_while_it_is_asked(place: Place):
    """The run goes on with a new server where it was broken off."""
    place.checkpoint("step-1", 5)
    deaths = [ServerGoneError("it was given up")]

    def die(name: str, number: int) -> Exception | None:
        return deaths.pop() if deaths and (name, number) == ("step-1", 3) else None

    place.on_question = die
    curve = await place.watch()
    assert scores(curve) == {"step-1": 0.5}
    assert len(place.started) == 2
    assert sum(place.times("step-1")) == ITEMS + 1
    assert len(list_runs(Layout.from_environment())) == 2


async def test_a_server_for_the_base_that_does_not_start_ends_it(place: Place):
    """There is nothing to go on with; nor where the base itself cannot be evaluated."""
    place.checkpoint("step-1", 5)
    place.refusals = {"start tiny": [StartError("no memory")]}
    with pytest.raises(StartError, match="no memory"):
        await place.watch()
    for restored in (False, True):
        place.refusals = {"base": [WeightsError("lost", restored=restored) for _ in range(2)]}
        with pytest.raises(WeightsError, match="lost"):
            await place.watch()
    place.refusals = {"base": [ModelError("it is gone")]}
    with pytest.raises(ModelError, match="it is gone"):
        await place.watch()
    assert scores(await place.watch()) == {"step-1": 0.5}


@pytest.mark.parametrize("number", [0, 4, 9])
async def test_broken_off_and_begun_again(place: Place, number: int):
    """What was evaluated is not evaluated again; the run that was broken off is gone on with."""
    place.checkpoint("step-1", 5)
    place.checkpoint("step-2", 6)
    hang = asyncio.Event()

    def stop(name: str, at: int) -> Exception | None:
        if (name, at) == ("step-2", number) and not hang.is_set():
            hang.set()
            return asyncio.CancelledError()
        return None

    place.on_question = stop
    with pytest.raises(asyncio.CancelledError):
        await place.watch()
    assert hang.is_set()
    layout = Layout.from_environment()
    (begun,) = (info for info in list_runs(layout) if info.status is RunStatus.INTERRUPTED)
    curve = await place.watch()
    assert scores(curve) == {"step-1": 0.5, "step-2": 0.6}
    assert place.targets == ["base", "step-1", "step-2", "step-2"]
    assert {point.run for point in curve.points} < {info.id for info in list_runs(layout)}
    assert curve.points[1].run == begun.id
    again = [n + (at == number) for at, n in enumerate([1] * ITEMS)]
    assert place.times("step-2") == again


async def test_a_point_outlives_an_attempt_that_was_broken_off(place: Place):
    """Overwritten, begun anew, killed, and removed by the trainer: what was found out stays."""
    place.checkpoint("final", 5)
    first = await place.watch()
    place.checkpoint("final", 8)
    place.on_question = lambda name, _: asyncio.CancelledError() if name == "final" else None
    with pytest.raises(asyncio.CancelledError):
        await place.watch()
    shutil.rmtree(place.out / "final")
    place.on_question = lambda *_: None
    assert await place.watch() == first
    place.checkpoint("final", 8)
    assert scores(await place.watch()) == {"final": 0.8}


async def test_a_run_that_was_removed_meanwhile_is_begun_again(place: Place):
    """Of one that was broken off; a finished one's score stays, without differences."""
    place.checkpoint("step-1", 5)
    place.checkpoint("step-2", 6)
    dying = [asyncio.CancelledError()]
    place.on_question = lambda name, _: dying.pop() if dying and name == "step-2" else None
    with pytest.raises(asyncio.CancelledError):
        await place.watch()
    shutil.rmtree(Layout.from_environment().runs)
    curve = await place.watch()
    assert scores(curve) == {"step-1": 0.5, "step-2": 0.6}
    one, two = (point.tasks[0] for point in curve.points)
    assert (one.from_base.result, two.from_best.result) == (None, None)
    assert "there is no run" in one.from_base.why


async def test_a_folder_that_changes_while_it_is_loaded(place: Place):
    """Nobody knows what was loaded: it is looked at again, and evaluated when it is quiet."""
    place.checkpoint("step-1", 5)
    changes = [9, 8]

    def overwrite(name: str) -> None:
        if name == "step-1" and changes:
            place.checkpoint("step-1", changes.pop())

    place.on_target = overwrite
    watching = asyncio.create_task(place.watch(once=False))
    await until(lambda: place.times("step-1") == [1] * ITEMS)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert place.targets == ["base", "step-1", "step-1", "step-1"]
    place.on_target = lambda _: None
    assert scores(await place.watch()) == {"step-1": 0.9}
    assert any(said.startswith("step-1 changed while it was loaded") for said in place.said)


async def test_a_failure_of_a_folder_that_changed_is_none(place: Place):
    """What could not be loaded because it was being written is tried when it is whole."""
    place.adapter("lora-1", 5)
    place.refusals = {"lora-1": [AdapterError("it was written to while it was copied")]}
    place.on_target = lambda name: name == "lora-1" and place.adapter("lora-1", 7)
    watching = asyncio.create_task(place.watch(once=False))
    await until(lambda: place.targets.count("lora-1") == 1)
    place.on_target = lambda _: None
    await until(lambda: place.times("lora-1") == [1] * ITEMS)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert scores(await place.watch()) == {"lora-1": 0.7}


async def test_the_same_content_under_another_name(place: Place):
    """Is not asked again, but is a point of its own."""
    place.checkpoint("step-1", 5)
    shutil.copytree(place.out / "step-1", place.out / "best")
    curve = await place.watch()
    assert scores(curve) == {"step-1": 0.5, "best": 0.5}
    assert place.targets == ["base", "step-1"]
    assert curve.points[1].tasks[0].from_best.why == "it has the same content"
    assert curve.points[1].tasks[0].from_base.result is not None


async def test_the_same_weights_with_another_template(place: Place):
    """Are asked by themselves: the answers are others."""
    place.checkpoint("step-1", 5)
    shutil.copytree(place.out / "step-1", place.out / "step-2")
    (place.out / "step-2" / "chat_template.jinja").write_text("{{ other }}")
    await place.watch()
    assert place.targets == ["base", "step-1", "step-2"]


async def test_a_configuration_that_was_mended(place: Place):
    """What failed because of it is tried again."""
    config = place.checkpoint("step-1", 5) / "config.json"
    place.refusals = {"step-1": [ModelError("another architecture")]}
    assert scores(await place.watch()) == {"step-1": None}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_theta": 5}))
    assert scores(await place.watch()) == {"step-1": 0.5}


async def test_what_cannot_be_read_is_left_out_and_named(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    """As soon as it shows, once, and again at the end of --once; the rest goes on."""
    place.checkpoint("step-1", 5)
    place.checkpoint("step-2", 6)
    digest = watching_module.content_digest

    def refuse(found: Finished, *, layout: Layout) -> str:
        if found.name == "step-1":
            raise PermissionError(13, "Permission denied")
        return digest(found, layout=layout)

    with monkeypatch.context() as patched:
        patched.setattr(watching_module, "content_digest", refuse)
        assert scores(await place.watch()) == {"step-2": 0.6}
    said = [line for line in place.said if "step-1" in line]
    why = "[Errno 13] Permission denied"
    assert said == [f"waiting for step-1: {why}", f"skipping step-1: {why}"]
    assert scores(await place.watch()) == {"step-1": 0.5, "step-2": 0.6}


async def test_a_checkpoint_is_written_slowly(place: Place, tmp_path: Path):
    """It is waited for, byte by byte, and then evaluated; the watch goes on."""
    whole = place.checkpoint("step-1", 5)
    files = {file.name: file.read_bytes() for file in whole.iterdir()}
    shutil.rmtree(whole)
    watching = asyncio.create_task(place.watch(once=False))
    await until(lambda: place.times("base") == [1] * ITEMS)
    whole.mkdir()
    for name in ("quality", "config.json", "tokenizer.json", "model.safetensors"):
        for at in range(0, len(files[name]), 40):
            with (whole / name).open("ab") as file:
                file.write(files[name][at : at + 40])
            await asyncio.sleep(0.02)
            done = name == "model.safetensors" and at + 40 >= len(files[name])
            assert done or "step-1" not in place.targets
    await until(lambda: place.times("step-1") == [1] * ITEMS)
    assert any(said.startswith("waiting for step-1: ") for said in place.said)
    place.checkpoint("step-2", 6)
    await until(lambda: place.times("step-2") == [1] * ITEMS)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert len(place.started) == 1


async def test_once_leaves_out_what_is_not_finished(place: Place):
    """And says so."""
    place.checkpoint("step-1", 5)
    half = place.checkpoint("step-2", 5) / "model.safetensors"
    half.write_bytes(half.read_bytes()[:-1])
    assert scores(await place.watch()) == {"step-1": 0.5}
    assert [said for said in place.said if said.startswith("skipping step-2: model.saf")]


async def test_lora_is_enabled_when_there_is_an_adapter(place: Place):
    """For the largest rank that is there; a larger one later means another start."""
    place.checkpoint("step-1", 5)
    await place.watch()
    assert not place.started[0].server.enable_lora
    place.adapter("lora-2", 6, rank=8)
    place.adapter("lora-3", 7, rank=16)
    place.checkpoint("step-2", 3)
    await place.watch()
    assert len(place.started) == 2
    assert (place.started[1].server.enable_lora, place.started[1].server.max_lora_rank) == (
        True,
        16,
    )
    watching = asyncio.create_task(place.watch(once=False))
    place.adapter("lora-4", 8, rank=4)
    await until(lambda: place.times("lora-4") == [1] * ITEMS)
    place.adapter("lora-5", 9, rank=32)
    await until(lambda: place.times("lora-5") == [1] * ITEMS)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert [config.server.max_lora_rank for config in place.started[2:]] == [16, 32]


async def test_a_rank_that_no_server_takes(place: Place):
    """Is that adapter's failure, with the reason; the base and the others never hear of it."""
    place.adapter("lora-1", 5)
    place.adapter("lora-2", 6, rank=1024)
    place.adapter("lora-3", 7, rank=16)
    curve = await place.watch()
    assert scores(curve) == {"lora-1": 0.5, "lora-2": None, "lora-3": 0.7}
    assert place.targets == ["base", "lora-1", "lora-3"]
    assert [config.server.max_lora_rank for config in place.started] == [16]
    assert "rank 1024, and the server takes 512 at most" in curve.points[1].failure


async def test_other_engines_take_any_rank(place: Place):
    """The bound is that of vLLM's flag."""
    place.adapter("lora-1", 5, rank=1024)
    assert scores(await place.watch(engine="hf")) == {"lora-1": 0.5}
    assert [config.server.max_lora_rank for config in place.started] == [1024]


async def test_without_a_model_the_first_checkpoint_starts_the_server(place: Place):
    """There is no base; one that no server can be started with is a failure, as is an adapter."""
    place.checkpoint("step-1", 5)
    place.checkpoint("step-2", 6)
    place.checkpoint("step-3", 7)
    place.adapter("lora-4", 8)
    place.refusals = {"start step-1": [ModelError("it has no tokenizer")]}
    curve = await place.watch(place.out)
    assert [Path(str(config.model)).name for config in place.started] == ["step-1", "step-2"]
    assert scores(curve) == {"step-1": None, "step-2": 0.6, "step-3": 0.7, "lora-4": None}
    assert "its base is not known" in curve.points[3].failure
    assert curve.base is None
    assert curve.points[2].tasks[0].from_base is None
    assert curve.points[2].tasks[0].from_best.name == "step-2"


async def test_the_first_checkpoint_was_removed_by_the_trainer(place: Place):
    """The server is started with one that is there."""
    place.checkpoint("step-1", 5)
    watching = asyncio.create_task(place.watch(place.out, once=False))
    await until(lambda: place.times("step-1") == [1] * ITEMS)
    shutil.rmtree(place.out / "step-1")
    place.checkpoint("step-2", 6)
    await until(lambda: place.times("step-2") == [1] * ITEMS)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert [Path(str(config.model)).name for config in place.started] == ["step-1", "step-2"]
    assert scores(await place.watch(place.out)) == {"step-1": 0.5, "step-2": 0.6}


async def test_names_without_numbers_stand_where_they_appeared(place: Place):
    """Behind the largest step that was there then."""
    place.checkpoint("step-10", 5)
    place.checkpoint("warm", 2)
    await place.watch()
    place.checkpoint("step-20", 6)
    await place.watch()
    place.checkpoint("final", 7)
    place.checkpoint("step-5", 4)
    curve = await place.watch()
    assert [point.name for point in curve.points] == [
        "step-5",
        "step-10",
        "warm",
        "step-20",
        "final",
    ]
    assert curve.points[-1].tasks[0].from_best.name == "step-20"


async def test_another_question_is_another_curve(place: Place):
    """Seed, limit, or base: nothing is mixed, and each can be gone on with."""
    place.checkpoint("step-1", 5)
    curves = [await place.watch(), await place.watch(seed=1), await place.watch(limit=5)]
    assert len({curve.points[0].run for curve in curves}) == 3
    assert await place.watch(concurrency=4) == curves[0]
    assert len(list(Layout.from_environment().watches.iterdir())) == 3


async def test_other_data_gives_no_difference(place: Place):
    """Where the task's data was changed between two points, they are no pairs."""
    place.checkpoint("step-1", 5)
    await place.watch()
    lines = (place.root / "sums.jsonl").read_text().splitlines()
    (place.root / "sums.jsonl").write_text("\n".join(lines[:8]) + "\n")
    place.checkpoint("step-2", 4)
    curve = await place.watch()
    assert scores(curve) == {"step-1": 0.5, "step-2": 0.5}
    against = curve.points[1].tasks[0].from_base
    assert against.result is None
    assert "different data" in against.why


async def test_two_watches_of_the_same_thing(place: Place):
    """The second is told so at once; one that asks something else may work."""
    place.checkpoint("step-1", 5)
    watching = asyncio.create_task(place.watch(once=False))
    await until(lambda: place.times("step-1") == [1] * ITEMS)
    with pytest.raises(RunLockedError, match="another process"):
        await place.watch()
    await place.watch(seed=5)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    await place.watch()


async def test_a_watch_journal_is_repaired_or_refused(place: Place):
    """A torn end is moved aside and said; a file that cannot be read is left as it is."""
    place.checkpoint("step-1", 5)
    curve = await place.watch()
    (folder,) = Layout.from_environment().watches.iterdir()
    path = folder / "journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"record":"att')
    place.said.clear()
    assert await place.watch() == curve
    assert path.read_bytes() == whole
    (kept,) = folder.glob("*.cut*")
    assert kept.read_bytes() == b'{"record":"att'
    assert [line for line in place.said if str(kept) in line]
    for content in (whole.decode().encode("utf-16"), whole.partition(b"\n")[2]):
        path.write_bytes(content)
        with pytest.raises(StoreError):
            await place.watch()
        assert path.read_bytes() == content


async def test_once_without_a_folder(place: Place):
    """Is an error; without --once it is waited for, which is said once."""
    shutil.rmtree(place.out)
    with pytest.raises(ConfigurationError, match=re.escape(str(place.out))):
        await place.watch()
    watching = asyncio.create_task(place.watch(once=False))
    await until(lambda: place.times("base") == [1] * ITEMS)
    told = f"waiting for {place.out}, which does not exist yet"
    await until(lambda: told in place.said)
    place.out.mkdir()
    place.checkpoint("step-1", 5)
    await until(lambda: place.times("step-1") == [1] * ITEMS)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert place.said.count(told) == 1

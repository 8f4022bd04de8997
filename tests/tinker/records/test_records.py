from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from tests.support.tinker_records import (
    START,
    a_checkpoint,
    a_model,
    a_sampler,
    a_session,
    later,
)

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.records.database import Database
from enginehouse.tinker.records.last_uses import LastUses
from enginehouse.tinker.records.records import Records


def _in(**time: float) -> datetime:
    return datetime.now(UTC) + timedelta(**time)


async def test_records_come_back(records: Records):
    """As they were added, every field."""
    session = a_session(
        tags=("nightly", "ß"),
        user_metadata={"a": [1, None]},
        sdk_version="0.38.0",
        display_name="é",
    )
    model = a_model(user_metadata={"renderer_name": "role_colon"})
    checkpoint = a_checkpoint(
        size_bytes=9_000_000_000,
        user_metadata={"step": "1"},
        request_id="r1",
        expires_at=_in(days=1),
    )
    sampler = a_sampler(checkpoint=checkpoint.path)
    await records.add_session(session)
    await records.add_model(model)
    await records.add_checkpoint(checkpoint)
    await records.add_sampling_session(sampler)

    assert await records.session("ses-1", user="ada") == session
    assert await records.model(model.model_id, user="ada") == model
    assert await records.checkpoint(checkpoint.path, user="ada") == checkpoint
    assert await records.sampling_session(sampler.sampling_session_id, user="ada") == sampler
    assert await records.sampling_sessions("ada", session_id="ses-1") == [sampler]


async def test_a_restart(records: Records, database_url: str):
    """Another service finds what the first one added."""
    model = a_model()
    await records.add_model(model)
    await records.close()
    again = await Records.open(database_url)
    try:
        assert await again.model(model.model_id, user=None) == model
    finally:
        await again.close()


async def test_other_users(records: Records):
    """What is another's is refused in the words for what is not there, and stays as it is."""
    await records.add_session(a_session())
    await records.add_model(a_model())
    await records.add_checkpoint(a_checkpoint())
    await records.add_sampling_session(a_sampler())

    async def refusal(work: object) -> str:
        with pytest.raises(TinkerError) as refused:
            await work  # type: ignore[misc]
        assert refused.value.status == 404
        return str(refused.value)

    path = a_checkpoint().path
    for anothers, missing, name in (
        (records.session("ses-1", user="bob"), records.session("ses-2", user="bob"), "ses-"),
        (
            records.model("ses-1:train:0", user="bob"),
            records.model("ses-2:train:0", user="bob"),
            "ses-",
        ),
        (
            records.sampling_session("ses-1:sample:0", user="bob"),
            records.sampling_session("ses-2:sample:0", user="bob"),
            "ses-",
        ),
        (
            records.checkpoint(path, user="bob"),
            records.checkpoint(path.replace("ses-1", "ses-2"), user="bob"),
            "ses-",
        ),
    ):
        assert (await refusal(anothers)).replace("ses-1", "ses-2") == await refusal(missing), name

    for change in (
        records.set_public(path, user="bob", public=True),
        records.set_expiry(path, user="bob", expires_at=None),
        records.remove_checkpoint(path, user="bob"),
        records.finish_session("ses-1", user="bob", reason="errored"),
    ):
        await refusal(change)
    assert await records.checkpoint(path, user="ada") == a_checkpoint()
    assert (await records.session("ses-1", user="ada")).finished is None
    assert (await records.models("bob")).entries == ()
    assert (await records.checkpoints("bob")).entries == ()
    assert (await records.checkpoints("bob", model_id="ses-1:train:0")).entries == ()


async def test_published(records: Records):
    """A published checkpoint can be read by everybody, and changed by its owner alone."""
    await records.add_model(a_model())
    published, private = a_checkpoint("one"), a_checkpoint("two", created=later(1))
    await records.add_checkpoint(published)
    await records.add_checkpoint(private)
    await records.set_public(published.path, user="ada", public=True)

    public = replace(published, public=True)
    assert await records.checkpoint(published.path, user="bob") == public
    assert (await records.checkpoints("bob", model_id="ses-1:train:0")).entries == (public,)
    assert (await records.checkpoints("bob")).entries == ()  # only what is his own
    assert await records.model("ses-1:train:0", user="bob", published=True) == a_model()
    assert (await records.models("bob", published=True)).entries == (a_model(),)
    assert (await records.models("bob")).entries == ()
    last = await records.last_checkpoints(["ses-1:train:0"], user="bob")
    assert last == {("ses-1:train:0", "training"): public}
    with pytest.raises(TinkerError):
        await records.model("ses-1:train:0", user="bob")
    with pytest.raises(TinkerError):
        await records.remove_checkpoint(published.path, user="bob")

    await records.set_public(published.path, user="ada", public=False)
    with pytest.raises(TinkerError):
        await records.checkpoint(published.path, user="bob")
    with pytest.raises(TinkerError):
        await records.model("ses-1:train:0", user="bob", published=True)


async def test_adding_again(records: Records):
    """By a retried request: it changes nothing, and another user cannot take the id."""
    await records.add_model(a_model())
    await records.add_model(a_model(base_model="another"))
    assert (await records.model("ses-1:train:0", user="ada")).base_model == "org/base"
    with pytest.raises(TinkerError, match="another user"):
        await records.add_model(a_model(user="bob"))


async def test_pages(records: Records):
    """Lists begin with the newest, and say how many there are in all."""
    for number in range(7):
        await records.add_session(a_session(f"ses-{number}", created=later(number)))
        await records.add_model(a_model(f"ses-{number}:train:0", created=later(number)))
        await records.add_checkpoint(a_checkpoint(f"{number}", created=later(number)))
    await records.add_model(a_model("ses-9:train:0", user="bob"))

    models = await records.models("ada", offset=2, limit=3)
    assert [m.model_id[4] for m in models.entries] == ["4", "3", "2"]
    assert models.total == 7
    checkpoints = await records.checkpoints("ada", offset=5, limit=5)
    assert [c.name for c in checkpoints.entries] == ["1", "0"]
    assert checkpoints.total == 7
    sessions = await records.sessions("ada", offset=0, limit=2)
    assert [s.session_id for s in sessions.entries] == ["ses-6", "ses-5"]
    assert sessions.total == 7
    assert (await records.models(None)).total == 8
    one = await records.models("ada", session_id="ses-3")
    assert [m.model_id for m in one.entries] == ["ses-3:train:0"]


async def test_last_checkpoints(records: Records):
    """Of each model and each kind, by time of creation."""
    other = a_model("ses-2:train:0")
    for number in range(3):
        await records.add_checkpoint(a_checkpoint(f"{number}", created=later(number)))
        await records.add_checkpoint(
            a_checkpoint(f"s{number}", kind="sampler", created=later(-number))
        )
    await records.add_checkpoint(a_checkpoint("x", model=other))
    last = await records.last_checkpoints(["ses-1:train:0", "ses-2:train:0"], user="ada")
    assert {key: record.name for key, record in last.items()} == {
        ("ses-1:train:0", "training"): "2",
        ("ses-1:train:0", "sampler"): "s0",
        ("ses-2:train:0", "training"): "x",
    }


async def test_samplers_by_name(records: Records):
    """The newest of a model, or of an alias; no other kind, no other user's."""
    model = a_model()
    await records.add_model(model)
    for minutes, name, kind, metadata in (
        (0, "one", "sampler", {"alias": "mine"}),
        (1, "two", "sampler", {"alias": "mine"}),
        (2, "three", "sampler", {}),
        (3, "four", "training", {"alias": "mine"}),
    ):
        checkpoint = a_checkpoint(name, kind=kind, user_metadata=metadata, created=later(minutes))
        await records.add_checkpoint(checkpoint)
    for called, name in (("mine", "two"), (model.model_id, "three")):
        checkpoint = await records.sampler_called(called, user="ada")
        assert checkpoint is not None
        assert checkpoint.name == name
    assert await records.sampler_called("mine", user="bob") is None
    assert await records.sampler_called("two", user="ada") is None


async def test_values_that_cannot_be_recorded(records: Records, database_url: str):
    """The mistake is the request's: an error of the server would be tried again without end."""
    if database_url.startswith("sqlite"):
        await records.add_session(a_session(sdk_version="9" * 300))  # which takes anything
        return
    for changes in ({"sdk_version": "9" * 300}, {"display_name": "a\0b"}):
        with pytest.raises(TinkerError, match="recorded") as refused:
            await records.add_session(a_session(**changes))
        assert (refused.value.status, refused.value.category) == (400, "user")
    with pytest.raises(TinkerError, match="recorded"):
        await records.session("ses\0", user="ada")


async def test_expired(records: Records):
    """It says so, is not listed, and its path can be used again."""
    expired = a_checkpoint("old", expires_at=_in(seconds=-1), public=True)
    living = a_checkpoint("new", expires_at=_in(hours=1))
    await records.add_checkpoint(expired)
    await records.add_checkpoint(living)

    for user in ("ada", "bob"):
        with pytest.raises(TinkerError, match=r"old .*\d{4}-\d\d-\d\d") as refused:
            await records.checkpoint(expired.path, user=user)
        assert refused.value.status == 404
    with pytest.raises(TinkerError, match="expired"):
        await records.set_expiry(expired.path, user="ada", expires_at=None)
    assert (await records.checkpoints("ada")).entries == (living,)
    assert await records.expired_checkpoints() == [expired]
    await records.mark_removed(expired)
    assert await records.expired_checkpoints() == []
    assert await records.checkpoint_folders() == {living.folder}
    with pytest.raises(TinkerError, match="expired"):
        await records.checkpoint(expired.path, user="ada")

    again = a_checkpoint("old", folder="elsewhere", created=later(5))
    await records.add_checkpoint(again)
    assert await records.checkpoint(expired.path, user="ada") == again


async def test_replacing(records: Records):
    """The checkpoint that had the path is returned, so that its files can be removed."""
    first, second = a_checkpoint(folder="a", public=True), a_checkpoint(folder="b")
    assert await records.add_checkpoint(first) is None
    assert await records.add_checkpoint(second) == first
    assert await records.checkpoint(first.path, user="ada") == second


async def test_saved_by(records: Records):
    """What a request saved before a restart is found by its id."""
    await records.add_checkpoint(a_checkpoint(request_id="r7"))
    assert await records.checkpoint_saved_by("r7") == a_checkpoint(request_id="r7")
    assert await records.checkpoint_saved_by("r8") is None


async def test_finishing(records: Records):
    """Only the first reason counts."""
    await records.add_session(a_session())
    await records.finish_session("ses-1", user="ada", reason="interrupted", detail="ctrl-C")
    await records.finish_session("ses-1", user="ada", reason="success")
    session = await records.session("ses-1", user="ada")
    assert (session.finish_reason, session.finish_detail) == ("interrupted", "ctrl-C")
    assert session.finished is not None
    assert session.finished > START


async def test_finding_sessions(records: Records):
    """By words of their names, by id, and from a time on; wildcards are plain text."""
    for number, name in enumerate(["Nightly run", "nightly_50%", "evening run", None]):
        await records.add_session(
            a_session(f"ses-{number}", created=later(number // 2), display_name=name)
        )
    await records.add_session(a_session("ses-b", user="bob", display_name="nightly run"))

    async def found(**search: object) -> list[str]:
        sessions = await records.find_sessions("ada", **search)  # type: ignore[arg-type]
        return [session.session_id[-1] for session in sessions]

    assert await found() == ["3", "2", "1", "0"]
    assert await found(words=["NIGHTLY"]) == ["1", "0"]
    assert await found(words=["run", "night"]) == ["0"]
    assert await found(words=["_50%"]) == ["1"]
    assert await found(words=["%"]) == ["1"]
    assert await found(session_id="ses-3", words=["evening"]) == ["3", "2"]
    assert await found(session_id="ses-b") == []
    assert await found(before=(later(1), "ses-3")) == ["2", "1", "0"]
    assert await found(before=(later(1), "ses-2")) == ["1", "0"]


async def test_last_uses(records: Records, database_url: str):
    """They are known at once, and written by the time the records are closed."""
    await records.add_session(a_session())
    await records.add_model(a_model())
    records.touch("ses-1:train:0")
    records.touch_session("ses-1")
    model = await records.model("ses-1:train:0", user="ada")
    session = await records.session("ses-1", user="ada")
    assert model.last_request > START
    assert session.last_heartbeat > START
    assert (await records.models("ada")).entries == (model,)
    await records.close()
    again = await Records.open(database_url)
    try:
        assert await again.model("ses-1:train:0", user="ada") == model
        assert await again.session("ses-1", user="ada") == session
    finally:
        await again.close()


async def test_last_uses_are_written_meanwhile(records: Records, database_url: str):
    """So that a killed service loses little of them."""
    writing = await Database.open(database_url)
    last_uses = LastUses(writing, interval=0.0)
    await records.add_model(a_model())
    last_uses.note_model("ses-1:train:0")
    async with asyncio.timeout(20):
        while (await records.model("ses-1:train:0", user="ada")).last_request == START:
            pass
    await last_uses.close()
    await writing.close()


async def test_many_writers(records: Records):
    """A hundred checkpoints and ten retries of one model at the same time."""
    await asyncio.gather(
        *(records.add_checkpoint(a_checkpoint(f"{number}")) for number in range(100)),
        *(records.add_model(a_model()) for _ in range(10)),
    )
    assert (await records.checkpoints("ada")).total == 100

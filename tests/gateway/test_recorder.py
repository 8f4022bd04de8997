from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from enginehouse.core.errors import StoreError
from enginehouse.gateway.identity import Identity
from enginehouse.gateway.journal import open_journal
from enginehouse.gateway.recorder import RecordedReply, RecordedRequest, Recorder, is_whole

COMPLETIONS = "/v1/completions"
GREEDY = {"prompt": "x", "temperature": 0}
SAMPLED = {"prompt": "x", "temperature": 1}


class Weights:
    """Says whose weights answer."""

    def __init__(self, digest: str | None = "w1") -> None:
        self.digest = digest

    async def now(self) -> Identity | None:
        """As it was told."""
        return None if self.digest is None else Identity(weights=self.digest)

    async def after(self, before: Identity, *, weights_digest: str | None) -> Identity | None:
        """What the reply said, or else those from before."""
        return Identity(weights=weights_digest) if weights_digest else before


@contextmanager
def recording(
    folder: Path,
    *,
    weights: Weights | None = None,
    said: list[str] | None = None,
    seeds: bool = True,
    replay: bool = False,
    resume: bool = False,
) -> Iterator[Recorder]:
    """A recorder over a folder's journal."""
    with open_journal(folder) as journal:
        yield Recorder(
            journal,
            weights or Weights(),  # type: ignore[arg-type]
            seeds=seeds,
            replay=replay,
            resume=resume,
            notify=([] if said is None else said).append,
        )


def answer(text: str) -> bytes:
    """A whole answer."""
    return json.dumps({"choices": [{"index": 0, "text": text, "finish_reason": "stop"}]}).encode()


def events(*texts: str, end: str = "data: [DONE]\n\n", reason: str | None = "stop") -> bytes:
    """A stream, whose last piece has the finish reason."""
    choices = [{"index": 0, "text": text, "finish_reason": None} for text in texts]
    choices[-1]["finish_reason"] = reason
    return "".join(f"data: {json.dumps({'choices': [c]})}\n\n" for c in choices).encode() + (
        end.encode()
    )


async def find(recorder: Recorder, body: dict, **options: object) -> RecordedRequest:
    """A request that can be recorded."""
    request = await recorder.find(COMPLETIONS, json.dumps(body).encode(), **options)
    assert request is not None
    return request


async def ask(recorder: Recorder, body: dict, would_be: str, **options: object) -> str:
    """What the gateway answers: what is recorded, or what the engine would say now."""
    request = await find(recorder, body, **options)
    if request.reply is None:
        reply = RecordedReply(body=answer(would_be), content_type="application/json")
        await recorder.record(request, reply, weights_digest=None)
        return would_be
    return json.loads(request.reply.body)["choices"][0]["text"]


async def test_repeatable_answers_are_replayed(tmp_path):
    """In the same session, and in the next one; others are asked for again."""
    with recording(tmp_path, replay=True) as recorder:
        assert await ask(recorder, GREEDY, "one") == "one"
        assert await ask(recorder, GREEDY, "two") == "one"
        assert await ask(recorder, SAMPLED, "three") == "three"
        assert await ask(recorder, SAMPLED, "four") == "four"
        assert await ask(recorder, SAMPLED | {"seed": 1}, "five") == "five"
        assert await ask(recorder, SAMPLED | {"seed": 1}, "six") == "five"
        assert await ask(recorder, SAMPLED | {"seed": 2}, "six") == "six"
    with recording(tmp_path, replay=True) as recorder:
        assert await ask(recorder, {"temperature": 0, "prompt": "x", "user": "me"}, "?") == "one"
        assert await ask(recorder, SAMPLED, "seven") == "seven"
        assert await ask(recorder, SAMPLED | {"seed": 1}, "?") == "five"
        assert recorder.figures == msgspec.structs.replace(
            recorder.figures, recorded=1, replayed=2, unrecorded=0
        )


async def test_without_replay_everything_is_asked_again(tmp_path):
    """It is only recorded."""
    for _ in range(2):
        with recording(tmp_path) as recorder:
            assert await ask(recorder, GREEDY, "one") == "one"
            assert await ask(recorder, GREEDY, "two") == "two"


async def test_a_seed_that_the_engine_ignores(tmp_path):
    """It makes nothing repeatable."""
    with recording(tmp_path, replay=True, seeds=False) as recorder:
        assert await ask(recorder, SAMPLED | {"seed": 1}, "one") == "one"
        assert await ask(recorder, SAMPLED | {"seed": 1}, "two") == "two"


async def test_a_resumed_program_gets_its_answers_in_order(tmp_path):
    """The k-th identical request gets the k-th answer; what was not recorded is asked."""
    with recording(tmp_path, resume=True) as recorder:
        for would_be in ("one", "two"):
            assert await ask(recorder, SAMPLED, would_be) == would_be
        assert await ask(recorder, GREEDY, "three") == "three"
    for last in ("four", "five"):
        with recording(tmp_path, resume=True) as recorder:
            known = ["one", "two"] if last == "four" else ["one", "two", "four"]
            assert [await ask(recorder, SAMPLED, "?") for _ in known] == known
            assert await ask(recorder, GREEDY, "?") == "three"
            assert await ask(recorder, SAMPLED, last) == last


async def test_a_resumed_program_with_replay(tmp_path):
    """A repeatable answer also stands for the requests that were not recorded."""
    with recording(tmp_path) as recorder:
        await ask(recorder, GREEDY, "one")
        await ask(recorder, SAMPLED, "two")
    with recording(tmp_path, resume=True, replay=True) as recorder:
        assert [await ask(recorder, GREEDY, "?") for _ in range(3)] == ["one"] * 3
        assert [await ask(recorder, SAMPLED, "new") for _ in range(2)] == ["two", "new"]


async def test_new_weights_get_no_old_answers(tmp_path):
    """An answer belongs to the weights that gave it, even if they came in the meantime."""
    weights = Weights("w1")
    with recording(tmp_path, weights=weights, replay=True) as recorder:
        assert await ask(recorder, GREEDY, "old") == "old"
        weights.digest = "w2"
        request = await find(recorder, GREEDY)
        assert request.reply is None
        reply = RecordedReply(body=answer("third"), content_type="application/json")
        await recorder.record(request, reply, weights_digest="w3")
        assert await ask(recorder, GREEDY, "new") == "new"
        weights.digest = "w3"
        assert await ask(recorder, GREEDY, "?") == "third"
        weights.digest = "w1"
        assert await ask(recorder, GREEDY, "?") == "old"
        weights.digest = None  # about to change
        assert await recorder.find(COMPLETIONS, json.dumps(GREEDY).encode()) is None


async def test_adapters_are_told_apart_by_content(tmp_path):
    """Whatever they are called."""
    with recording(tmp_path, replay=True) as recorder:
        assert await ask(recorder, GREEDY, "base") == "base"
        assert await ask(recorder, GREEDY, "a", adapter_digest="a") == "a"
        assert await ask(recorder, GREEDY, "b", adapter_digest="b") == "b"
        assert await ask(recorder, GREEDY, "?", adapter_digest="a") == "a"
        assert await ask(recorder, GREEDY, "?") == "base"


async def test_streams(tmp_path):
    """Recorded whole, and told apart from whole answers to the same question."""
    stream = RecordedReply(body=events("o", "ne"), content_type="text/event-stream", streamed=True)
    with recording(tmp_path, replay=True) as recorder:
        request = await find(recorder, GREEDY | {"stream": True})
        await recorder.record(request, stream, weights_digest=None)
        assert (await find(recorder, GREEDY)).reply is None
        assert (await find(recorder, GREEDY | {"stream": True})).reply == stream
        usage = {"stream": True, "stream_options": {"include_usage": True}}
        assert (await find(recorder, GREEDY | usage)).reply is None
        assert await ask(recorder, GREEDY, "whole") == "whole"
        assert (await find(recorder, GREEDY | {"stream": True})).reply == stream


@pytest.mark.parametrize(
    ("reply", "streamed", "whole"),
    [
        (answer("x"), False, True),
        (b'{"data": [{"embedding": [1, 2]}]}', False, True),
        (b'{"error": {"message": "no"}}', False, False),
        (b'{"choices": [{"finish_reason": "abort"}]}', False, False),
        (b'{"choices": [{"finish_reason": "error"}]}', False, False),
        (b'{"choices": [', False, False),
        (b"\xff", False, False),
        (events("a", "b"), True, True),
        (events("a", "b").replace(b"\n", b"\r\n"), True, True),
        (events("a", "b", end="data: [DONE]"), True, True),
        (b": hello\n\n" + events("a"), True, True),
        (events("a", "b", end=""), True, False),
        (events("a", "b", reason=None), True, False),
        (events("a", "b", reason="abort"), True, False),
        (b'data: {"error": {"message": "no"}}\n\n' + events("a"), True, False),
        (events("a", end='data: {"error": {"message": "no"}}\n\n'), True, False),
        (b"", True, False),
    ],
)
async def test_only_whole_answers_are_recorded(tmp_path, reply, streamed, whole):
    """Neither errors nor what the engine aborted."""
    recorded = RecordedReply(body=reply, content_type="any", streamed=streamed)
    assert is_whole(recorded) == whole
    with recording(tmp_path, replay=True) as recorder:
        body = GREEDY | {"stream": streamed}
        await recorder.record(await find(recorder, body), recorded, weights_digest=None)
        assert (await find(recorder, body)).reply == (recorded if whole else None)


async def test_bytes_are_kept(tmp_path):
    """Numbers, escapes and spaces of an answer are replayed as they came."""
    body = b'{"choices": [{"logprob": -0.10000000000000000555, "text": "\\u00fc \xc3\xbc\\n"}],\n'
    body += b' "x": 1e400}'
    with recording(tmp_path, replay=True) as recorder:
        reply = RecordedReply(body=body, content_type="application/json; charset=utf-8")
        await recorder.record(await find(recorder, GREEDY), reply, weights_digest=None)
    with recording(tmp_path, replay=True) as recorder:
        assert (await find(recorder, GREEDY)).reply == reply


async def test_what_a_record_says(tmp_path):
    """The request and the answer in words, and who gave it."""
    with recording(tmp_path) as recorder:
        await ask(recorder, GREEDY, "one", adapter_digest="a1")
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["type"] for line in lines] == ["header", "identity", "answer"]
    assert lines[1]["identity"] == {"weights": "w1"}
    assert lines[2]["identity"] == lines[1]["digest"]
    assert lines[2]["adapter"] == "a1"
    assert json.loads(lines[2]["request"]) == GREEDY
    assert json.loads(lines[2]["reply"])["choices"][0]["text"] == "one"


async def test_the_journal_is_private(tmp_path):
    """It holds prompts and answers."""
    with recording(tmp_path / "new" / "folder") as recorder:
        await ask(recorder, GREEDY, "one")
    assert (tmp_path / "new" / "folder").stat().st_mode & 0o077 == 0
    assert (tmp_path / "new" / "folder" / "answers.jsonl").stat().st_mode & 0o077 == 0


async def test_two_gateways_on_one_journal(tmp_path):
    """The second is refused, and told who has it; the first goes on."""
    with recording(tmp_path, replay=True) as recorder:
        holder = f"process {os.getpid()} on"
        with pytest.raises(StoreError, match=holder) as refused, recording(tmp_path):
            pass
        assert refused.value.fix
        assert await ask(recorder, GREEDY, "one") == "one"
    with recording(tmp_path, replay=True) as recorder:
        assert await ask(recorder, GREEDY, "?") == "one"


async def test_a_file_that_is_something_else(tmp_path):
    """It is refused and left as it was."""
    file = tmp_path / "answers.jsonl"
    for content in ('{"type":"answer","key":"00"}\n', "notes\n", '{"type":"header","format":99}\n'):
        file.write_text(content)
        with pytest.raises(StoreError), recording(tmp_path):
            pass
        assert file.read_text() == content


async def test_a_cut_end_is_repaired(tmp_path):
    """What a kill leaves of the last line is moved aside; every whole answer is there."""
    with recording(tmp_path) as recorder:
        await ask(recorder, GREEDY, "one")
        size = (tmp_path / "answers.jsonl").stat().st_size
        await ask(recorder, SAMPLED, "two")
    file = tmp_path / "answers.jsonl"
    whole = file.read_bytes()
    for length in range(size + 1, len(whole), 37):
        file.write_bytes(whole[:length])
        with open_journal(tmp_path) as journal:
            assert journal.repair is not None
            assert journal.repair.kept.read_bytes() == whole[size:length]
            journal.repair.kept.unlink()
        with recording(tmp_path, resume=True) as recorder:
            assert await ask(recorder, GREEDY, "?") == "one"
            assert await ask(recorder, SAMPLED, "again") == "again"
        file.write_bytes(whole)


KILLED = """
import asyncio, sys
from pathlib import Path
from tests.gateway.test_recorder import GREEDY, ask, recording

async def main():
    with recording(Path(sys.argv[1]), replay=True) as recorder:
        for number in range(10**6):
            await ask(recorder, GREEDY | {"prompt": f"{number}" * 500}, f"{number}" * 500)
            print(number, flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_kill_9_while_recording(tmp_path):
    """Whatever was answered is recorded, and the journal goes on, kill after kill."""
    done = -1
    for _ in range(3):
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", KILLED, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= done + 40:
                process.send_signal(signal.SIGKILL)
                break
        done = max(int(line), *(int(rest) for rest in process.stdout.read().splitlines() or [-1]))
        process.wait()
        process.stdout.close()
        with recording(tmp_path, replay=True) as recorder:
            for number in range(done + 1):
                wanted = f"{number}" * 500
                assert await ask(recorder, GREEDY | {"prompt": wanted}, "?") == wanted
            assert recorder.figures.recorded == 0


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file of this process can become larger."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


async def test_a_full_disk(tmp_path):
    """Requests are answered, it is said once, and recording goes on when there is room."""
    said: list[str] = []
    file = tmp_path / "answers.jsonl"
    with recording(tmp_path, said=said, replay=True) as recorder:
        await ask(recorder, GREEDY, "one")
        with disk_of(file.stat().st_size + 50):
            assert await ask(recorder, GREEDY | {"prompt": "y"}, "two") == "two"
            assert await ask(recorder, GREEDY | {"prompt": "z"}, "three") == "three"
            assert await ask(recorder, GREEDY, "?") == "one"
        assert len(said) == 1
        assert "not recorded" in said[0]
        assert recorder.figures.unrecorded == 2
        assert await ask(recorder, GREEDY | {"prompt": "y"}, "four") == "four"
        assert len(said) == 2
        assert await ask(recorder, GREEDY | {"prompt": "y"}, "?") == "four"
    with recording(tmp_path, replay=True) as recorder:
        assert await ask(recorder, GREEDY, "?") == "one"
        assert await ask(recorder, GREEDY | {"prompt": "y"}, "?") == "four"
        assert await ask(recorder, GREEDY | {"prompt": "z"}, "five") == "five"


async def test_a_disk_that_is_full_from_the_start(tmp_path):
    """Nothing could be recorded, so nothing is started."""
    (tmp_path / "answers.jsonl").symlink_to("/dev/full")
    with pytest.raises(StoreError, match=r"answers\.jsonl"), recording(tmp_path):
        pass


async def test_a_record_that_cannot_be_read_is_asked_for_again(tmp_path):
    """The file was changed behind our back."""
    said: list[str] = []
    with recording(tmp_path, said=said, replay=True) as recorder:
        await ask(recorder, GREEDY, "one")
        file = tmp_path / "answers.jsonl"
        file.write_bytes(b"x" * file.stat().st_size)
        assert await ask(recorder, GREEDY, "two") == "two"
    assert len(said) == 1


async def test_keys_that_begin_alike(tmp_path):
    """The whole key is compared, not only the part that is kept in memory."""
    with open_journal(tmp_path) as journal:
        recorder = Recorder(journal, Weights(), seeds=True, replay=True, resume=False, notify=print)  # type: ignore[arg-type]
        await ask(recorder, GREEDY, "one")
        one, other = await find(recorder, GREEDY), await find(recorder, GREEDY | {"prompt": "y"})
        offset = journal.index.first(one.key)
        assert offset is not None
        journal.index.add(other.key, offset)
        assert await ask(recorder, GREEDY | {"prompt": "y"}, "two") == "two"


async def test_many_at_once(tmp_path):
    """Answers that come in any order belong to their questions."""
    with recording(tmp_path, replay=True) as recorder:
        prompts = [GREEDY | {"prompt": f"{number}"} for number in range(300)]
        await asyncio.gather(*(ask(recorder, body, body["prompt"]) for body in prompts))
        again = await asyncio.gather(*(ask(recorder, body, "?") for body in prompts))
    assert again == [body["prompt"] for body in prompts]

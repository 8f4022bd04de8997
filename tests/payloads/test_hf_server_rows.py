"""One answer of the hf server as it grows: its text, its end, its random numbers, its JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginehouse.core.messages import ChatPrompt, Message, TextPrompt
from enginehouse.core.sampler import SampleRequest, Timing
from enginehouse.core.sampling import SamplingParameters
from enginehouse.dialects import openai_chat, openai_completions

END = 0
TIMING = Timing(started=0, elapsed=0)


class Bytes:
    """A vocabulary of bytes: token 1 + b is the byte b; token 0 ends an answer."""

    ends = frozenset({END})

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of whole bytes; what is no UTF-8 is the replacement character."""
        special = "" if skip_special_tokens else "</s>"
        parts = bytes(token - 1 for token in ids if token).decode("utf-8", "replace")
        return parts + special * ids.count(END)

    def token_text(self, token: int) -> str:
        """One token's text."""
        return self.decode([token], skip_special_tokens=False)


def tokens(text: str) -> list[int]:
    """The tokens of a text."""
    return [byte + 1 for byte in text.encode()]


@pytest.fixture
async def grow(hf_server):
    """Feeds an answer tokens until it is finished; gives it and its pieces."""
    rows, requests = hf_server("rows"), hf_server("requests")

    def grown(ids: list[int], *, stream: bool = False, most: int = 100, **sampling: Any):
        job = rows.Job(stream=stream)
        row = rows.Row(
            job,
            index=0,
            prompt=tokens("ab"),
            sampling=requests.Sampling(**sampling),
            most=most,
            vocabulary=Bytes(),
            adapter=None,
        )
        job.rows.append(row)
        pieces = []
        for token in ids:
            row.advance(token)
            if stream:
                pieces.append(row.piece())
            if row.finish_reason:
                break
        return row, pieces

    return grown


async def test_the_end_token_counts_and_has_no_text(grow):
    """finish_reason stop; ids and counts have the token, the text has not."""
    row, _ = grow([*tokens("hi"), END])
    assert (row.text, row.finish_reason, row.ids) == ("hi", "stop", [*tokens("hi"), END])


async def test_ignoring_the_end_goes_on_to_max_tokens(grow):
    """The end token is then one like any other, and cut off is cut off."""
    row, _ = grow([*tokens("a"), END, *tokens("bc")], most=3, ignore_eos=True)
    assert (row.finish_reason, len(row.ids)) == ("length", 3)


async def test_stop_token_ids_end_even_then(grow):
    """Who names a token wants it to end the answer."""
    row, _ = grow([*tokens("abc")], ignore_eos=True, stop_token_ids=tuple(tokens("b")))
    assert (row.text, row.finish_reason) == ("a", "stop")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_over_several_tokens(grow, stream: bool):  # noqa: FBT001
    """The text ends before it, whoever reads along has seen nothing of it."""
    row, pieces = grow(tokens("one two END three"), stream=stream, stop=("END", "zzz"))
    assert (row.text, row.finish_reason) == ("one two ", "stop")
    assert row.ids == tokens("one two END")
    if stream:
        assert "".join(piece.text for piece in pieces) == "one two "
        assert [token for piece in pieces for token in piece.token_ids] == row.ids
        assert [p.finish_reason for p in pieces if p.finish_reason] == ["stop"]


async def test_the_beginning_of_a_stop_string_comes_when_it_is_none(grow):
    """What was held back is not lost, in the middle and at the end."""
    row, pieces = grow([*tokens("an EN and EN"), END], stream=True, stop=("END",))
    assert row.text == "an EN and EN"
    assert "".join(piece.text for piece in pieces) == row.text


@pytest.mark.parametrize("text", ["naïve café", "日本語", "a👩‍👩‍👧b", "x" * 50])
async def test_pieces_are_whole_characters_and_add_up(grow, text: str):
    """A character of several tokens is handed out when it is whole."""
    row, pieces = grow([*tokens(text), END], stream=True)
    assert "".join(piece.text for piece in pieces) == row.text == text
    assert all("\ufffd" not in piece.text for piece in pieces)


async def test_a_character_cut_off_is_the_same_streamed_and_whole(grow):
    """Both have the replacement character."""
    ids = tokens("日本")[:-1]
    whole, _ = grow(ids, most=len(ids))
    streamed, pieces = grow(ids, most=len(ids), stream=True)
    assert whole.text == streamed.text == "".join(piece.text for piece in pieces)
    assert whole.text.startswith("日")


async def test_seeds(grow):
    """The same seed gives the same numbers; another, or another answer of the same, others."""

    def numbers(seed: int | None, index: int = 0) -> list[float]:
        row, _ = grow([], seed=seed)
        made = type(row)(
            row.job,
            index=index,
            prompt=[],
            sampling=row.sampling,
            most=1,
            vocabulary=Bytes(),
            adapter=None,
        )
        return [made.uniform() for _ in range(4)]

    assert numbers(7) == numbers(7)
    distinct = {tuple(numbers(*pair)) for pair in ((7, 0), (8, 0), (7, 1), (8, 1))}
    assert len(distinct) == 4
    assert numbers(None) != numbers(None)
    assert all(0 <= number < 1 for number in numbers(7))


@pytest.mark.parametrize("chat", [True, False])
async def test_our_client_reads_the_reply(grow, hf_server, chat: bool):  # noqa: FBT001
    """Text, ids, counts, log-probabilities and the prompt's, through our own dialects."""
    rows, replies, requests = hf_server("rows"), hf_server("replies"), hf_server("requests")
    row, _ = grow([*tokens("hi"), END], logprobs=1, prompt_logprobs=1)
    for token in row.ids:
        row.scores.append(rows.TokenScore(token, -0.5, 1, [(token, -0.5)]))
    prompt = rows.Sequence(row.job, row.prompt, [row], None, 1)
    prompt.scores = [rows.TokenScore(row.prompt[1], -2.0, 3, [(99, -0.1)])]
    row.job.prompts.append(prompt)
    body = {"logprobs": True, "messages": [{"role": "user", "content": "x"}]} if chat else {}
    read = requests.read_chat if chat else requests.read_completion
    asked = read({**(body or {"prompt": "ab", "logprobs": 1}), "return_token_ids": True})
    reply = replies.Reply(asked=asked, model="m", token_text=Bytes().token_text)
    written = json.dumps(reply.whole(row.job)).encode()
    request = SampleRequest(
        prompt=ChatPrompt((Message("user", "x"),)) if chat else TextPrompt("ab"),
        parameters=SamplingParameters(logprobs=1, prompt_logprobs=1),
    )
    dialect = openai_chat if chat else openai_completions
    response = dialect.decode(written, request=request, timing=TIMING)
    (completion,) = response.completions
    assert (completion.text, completion.finish_reason) == ("hi", "stop")
    assert completion.token_ids == tuple(row.ids)
    assert [score.token_id for score in completion.logprobs] == row.ids
    assert [len(score.top) for score in completion.logprobs] == [1, 1, 1]
    assert (response.prompt_tokens, response.completion_tokens) == (2, 3)
    assert response.prompt_token_ids == tuple(row.prompt)
    first, second = response.prompt_logprobs
    assert first is None
    assert (second.token_id, second.logprob, second.rank) == (row.prompt[1], -2.0, 3)
    assert second.top[0].token_id == 99

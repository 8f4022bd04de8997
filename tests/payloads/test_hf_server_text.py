"""The text of an answer as it grows."""

from __future__ import annotations

import pytest


class Bytes:
    """A vocabulary of bytes, whose token 256 is special, that counts the tokens it decodes."""

    def __init__(self) -> None:
        self.decoded = 0

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text; an incomplete character becomes a replacement character."""
        self.decoded += len(ids)
        return bytes(token for token in ids if token < 256).decode(errors="replace")


@pytest.fixture
def write(hf_server):
    """Gives the text of tokens that come one by one, and how many tokens were decoded for it."""
    sampling, text = hf_server("requests").Sampling, hf_server("text")

    def written(tokens: list[int], **options: object) -> tuple[str, int]:
        vocabulary = Bytes()
        writer = text.Writer(vocabulary, sampling(**options), pieces=True)
        for count in range(1, len(tokens) + 1):
            if writer.add(tokens[:count]):
                return writer.finish(tokens[:count], stopped=True), vocabulary.decoded
        return writer.finish(tokens, stopped=False), vocabulary.decoded

    return written


@pytest.mark.parametrize("text", ["plain", "日本語 👍 é", "", "a👍" * 50])
def test_characters_of_several_tokens_come_whole(write, text):
    """However many tokens one is cut into."""
    assert write(list(text.encode()))[0] == text


def test_a_stop_ends_the_text(write):
    """It is left out, whatever comes behind it."""
    assert write(list("one👍\ntwo".encode()), stop=("\n",))[0] == "one👍"


@pytest.mark.parametrize("token", [0xE3, 0x80, 0xFF, 256])
def test_tokens_that_make_no_character_are_not_decoded_again_and_again(write, token):
    """A model may repeat half a character, or a special token, until its last token."""
    _, decoded = write([token] * 2000)
    assert decoded < 2000 * 100

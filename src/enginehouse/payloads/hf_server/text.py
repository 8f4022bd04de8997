"""Text into token ids and back: the tokenizer, its chat template, and a row's text so far."""

from __future__ import annotations

import copy
import threading
from functools import lru_cache
from typing import Any

from hf_server.errors import refused
from hf_server.requests import Sampling

_INCOMPLETE = "\ufffd"
_MOST_PENDING = 16  # tokens without a whole character; all are decoded again for each that comes


class Vocabulary:
    """A tokenizer for two threads: one that encodes, one that decodes.

    Encoding sets the tokenizer's state, and a tokenizer in use by another thread refuses that; so
    each side has its own copy. `ends` are the tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, *, ends: frozenset[int]) -> None:
        self.ends = ends
        self._encoder = tokenizer
        self._decoder = copy.deepcopy(tokenizer)
        self._encoding = threading.Lock()
        self.token_text = lru_cache(maxsize=1 << 18)(self._token_text)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The token ids of a text."""
        with self._encoding:
            found = self._encoder(text, add_special_tokens=add_special_tokens, verbose=False)
        return list(found["input_ids"])

    def render(self, messages: tuple[dict[str, Any], ...], template: dict[str, Any]) -> list[int]:
        """The token ids of a conversation in the model's chat template."""
        if not self._encoder.chat_template:
            raise refused(
                "this model has no chat template: ask /v1/completions with a prompt", param="model"
            )
        try:
            text = self._encoder.apply_chat_template(list(messages), tokenize=False, **template)
        except Exception as error:  # a template may raise whatever it likes
            raise refused(f"the model's chat template refuses this: {error}") from error
        return self.encode(text, add_special_tokens=False)

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of token ids; for the generating thread only."""
        text: str = self._decoder.decode(
            ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def _token_text(self, token: int) -> str:
        text: str = self._encoder.decode([token], clean_up_tokenization_spaces=False)
        return text


class Writer:
    """The text of one answer as it grows.

    Without stop strings and a reader of pieces nothing is decoded before the end.
    """

    def __init__(self, vocabulary: Vocabulary, sampling: Sampling, *, pieces: bool) -> None:
        self._vocabulary = vocabulary
        self._skip = sampling.skip_special_tokens
        self._stops = sampling.stop
        self._hold = max((len(stop) for stop in sampling.stop), default=1) - 1
        self._grows = pieces or bool(sampling.stop)
        self._decoded = 0
        self._context = 0
        self._sent = 0
        self._text = ""

    def add(self, ids: list[int]) -> bool:
        """Take note that `ids`, the whole answer, grew by a token; whether it met a stop string."""
        if not self._grows:
            return False
        before = self._decode(ids[self._context : self._decoded])
        after = self._decode(ids[self._context :])
        is_pending = len(after) <= len(before) or after.endswith(_INCOMPLETE)
        if is_pending and len(ids) - self._decoded < _MOST_PENDING:
            return False
        return self._append(after[len(before) :], ids)

    def _append(self, piece: str, ids: list[int]) -> bool:
        self._context, self._decoded = self._decoded, len(ids)
        searched = max(len(self._text) - self._hold, 0)
        self._text += piece
        places = [place for s in self._stops if (place := self._text.find(s, searched)) >= 0]
        if not places:
            return False
        self._text = self._text[: min(places)]
        return True

    def finish(self, ids: list[int], *, stopped: bool) -> str:
        """The whole text; `ids` is the answer without the token that ended it."""
        if not self._grows:
            self._text = self._decode(ids)
        elif not stopped:
            before = self._decode(ids[self._context : self._decoded])
            self._text += self._decode(ids[self._context :])[len(before) :]
        self._hold = 0
        return self._text

    def piece(self) -> str:
        """What was not handed out yet and can be no beginning of a stop string."""
        until = max(len(self._text) - self._hold, self._sent)
        piece = self._text[self._sent : until]
        self._sent = until
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self._vocabulary.decode(ids, skip_special_tokens=self._skip) if ids else ""

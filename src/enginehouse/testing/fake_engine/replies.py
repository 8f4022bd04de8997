"""Reply bodies as vLLM 0.32 writes them."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from enginehouse.testing.fake_engine import tokenizer
from enginehouse.testing.fake_engine.model import Answer, Question, logprobs, rivals
from enginehouse.testing.fake_engine.tool_calls import message


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a reply is written from; `top` and `prompt_top` None are off.

    `tool_parser` None leaves the text as it is. `scored` are ids to score beside each token of a
    text, instead of the most likely ones; `named_by_id` names its tokens by their ids; `echo`
    repeats the prompt before an answer that does not stream.
    """

    id: str
    created: int
    model: str
    chat: bool
    question: Question
    answers: list[Answer]
    top: int | None
    prompt_top: int | None
    token_ids: bool
    usage_in_stream: bool
    tool_parser: str | None = None
    scored: list[int] | None = None
    named_by_id: bool = False
    echo: bool = False

    def body(self) -> dict[str, Any]:
        """The whole reply of a request that does not stream."""
        choices = [self._choice(index, answer) for index, answer in enumerate(self.answers)]
        body = self._head("chat.completion" if self.chat else "text_completion") | {
            "choices": choices,
            "system_fingerprint": None,
            "usage": self._usage(),
        }
        if self.chat:
            body |= self._prompt_fields()
        return body

    def chunks(self) -> Iterator[dict[str, Any]]:
        """The chunks of a stream, one per token, the choices taking turns; the usage last."""
        head = self._head("chat.completion.chunk" if self.chat else "text_completion")
        ids = {"prompt_token_ids": self.question.ids} if self.token_ids else {}
        if self.chat:
            for index in range(len(self.answers)):
                opening = {"role": "assistant", "content": ""}
                choice = {"index": index, "delta": opening, "finish_reason": None}
                yield head | {"choices": [choice]} | ids
        pieces = [list(_pieces(answer)) for answer in self.answers]
        for place in range(max(len(texts) for texts in pieces)):
            for index, (answer, texts) in enumerate(zip(self.answers, pieces, strict=True)):
                if place < len(texts):
                    choice = self._piece(index, answer, place, texts[place])
                    if not self.chat:
                        choice |= ids if place == 0 else {}
                    yield head | {"choices": [choice]}
        if self.usage_in_stream:
            yield head | {"choices": [], "usage": self._usage()}

    def _piece(self, index: int, answer: Answer, place: int, text: str) -> dict[str, Any]:
        last = place == len(answer.ids) - 1
        choice: dict[str, Any] = {"delta": {"content": text}} if self.chat else {"text": text}
        choice |= {"index": index, "logprobs": None}
        choice["finish_reason"] = answer.finish_reason if last else None
        choice["stop_reason"] = answer.stop_reason if last else None
        choice["token_ids"] = [answer.ids[place]] if self.token_ids else None
        return choice

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": index,
            "logprobs": self._logprobs(answer),
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
            "token_ids": answer.ids if self.token_ids else None,
        }
        if self.chat:
            made = message(answer.text, parser=self.tool_parser)
            if "tool_calls" in made:
                choice["finish_reason"] = "tool_calls"
            return choice | {"message": made}
        echoed = self.question.user_text if self.echo else ""
        return choice | {"text": echoed + answer.text} | self._prompt_fields()

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _usage(self) -> dict[str, int]:
        prompt = len(self.question.ids)
        made = sum(len(answer.ids) for answer in self.answers)
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + made,
            "completion_tokens": made,
        }

    def _prompt_fields(self) -> dict[str, Any]:
        return {
            "prompt_token_ids": self.question.ids if self.token_ids else None,
            "prompt_logprobs": None if self.prompt_top is None else self._prompt_logprobs(),
        }

    def _prompt_logprobs(self) -> list[dict[str, Any] | None]:
        ids = self.question.ids
        values = logprobs(self.question.weights, (), ids)
        entries: list[dict[str, Any] | None] = [None]
        for token, value in zip(ids[1:], values[1:], strict=True):
            ranked = [(token, value), *rivals(token, value, self.prompt_top or 0)]
            entries.append(
                {
                    str(candidate): {
                        "logprob": likelihood,
                        "rank": rank,
                        "decoded_token": tokenizer.token_text(candidate),
                    }
                    for rank, (candidate, likelihood) in enumerate(ranked, start=1)
                }
            )
        return entries

    def _logprobs(self, answer: Answer) -> dict[str, Any] | None:
        if self.top is None:
            return None
        values = logprobs(self.question.weights, self.question.ids, answer.ids)
        if self.chat:
            return _chat_logprobs(answer.ids, values, self.top)
        scored = self._text_logprobs(answer.ids, values, self.top)
        if not self.echo:
            return scored
        prompt = self.question.ids
        echoed = self._text_logprobs(prompt, logprobs(self.question.weights, (), prompt), self.top)
        # Nothing precedes the first token, so it has no probability.
        echoed["token_logprobs"][0] = echoed["top_logprobs"][0] = None
        scored["text_offset"] = [
            len(self.question.user_text) + offset for offset in scored["text_offset"]
        ]
        return {name: echoed[name] + scored[name] for name in scored}

    def _text_logprobs(
        self, ids: Sequence[int], values: Sequence[float], top: int
    ) -> dict[str, Any]:
        texts = [self._named(token) for token in ids]
        candidates = []
        for place, (token, value) in enumerate(zip(ids, values, strict=True)):
            others = rivals(token, value, max(0, top - 1))
            if self.scored:
                before = [*self.question.ids, *ids[:place]]
                weights = self.question.weights
                others = [(one, logprobs(weights, before, [one])[0]) for one in self.scored]
            candidates.append(
                {self._named(one): likelihood for one, likelihood in [(token, value), *others]}
            )
        return {
            "text_offset": [sum(map(len, texts[:place])) for place in range(len(texts))],
            "token_logprobs": list(values),
            "tokens": texts,
            "top_logprobs": candidates,
        }

    def _named(self, token: int) -> str:
        return f"token_id:{token}" if self.named_by_id else tokenizer.token_text(token)


def _chat_logprobs(ids: Sequence[int], values: Sequence[float], top: int) -> dict[str, Any]:
    content = []
    for token, value in zip(ids, values, strict=True):
        candidates = [(token, value), *rivals(token, value, top)][:top]
        entry = _chat_token(token, value)
        entry["top_logprobs"] = [_chat_token(*candidate) for candidate in candidates]
        content.append(entry)
    return {"content": content}


def _chat_token(token: int, value: float) -> dict[str, Any]:
    text = tokenizer.token_text(token)
    return {"token": text, "logprob": value, "bytes": list(text.encode())}


def _pieces(answer: Answer) -> Iterator[str]:
    """The text that each token adds; a character's last byte brings the whole character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    room = len(answer.text)
    for place, token in enumerate(answer.ids):
        last = place == len(answer.ids) - 1
        text = decoder.decode(tokenizer.token_bytes(token), final=last)[:room]
        room -= len(text)
        yield text

"""Answers as OpenAI's API and vLLM's additions to it write them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hf_server.requests import Asked
from hf_server.rows import Job, Piece, Row, Sequence, TokenScore

TokenText = Callable[[int], str]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What all bodies of the answer to one request share."""

    asked: Asked
    model: str
    token_text: TokenText
    created: int = field(default_factory=lambda: int(time.time()))
    identifier: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def _chat(self) -> bool:
        return self.asked.messages is not None

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self._chat else "cmpl"
        return {
            "id": f"{prefix}-{self.identifier}",
            "object": kind,
            "created": self.created,
            "model": self.model,
        }

    def whole(self, job: Job) -> dict[str, Any]:
        """The body of an answer that comes at once."""
        body = self._head("chat.completion" if self._chat else "text_completion")
        body["choices"] = [self._choice(row, at) for at, row in enumerate(job.rows)]
        body["usage"] = usage(job)
        if self._chat:
            body |= self._of_prompt(job.prompts[0])
        else:
            of_row = {id(row): prompt for prompt in job.prompts for row in prompt.rows}
            for row, choice in zip(job.rows, body["choices"], strict=True):
                choice.update(self._of_prompt(of_row[id(row)]))
        return body

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """One event of a streamed answer."""
        body = self._head("chat.completion.chunk" if self._chat else "text_completion")
        choice: dict[str, Any] = {"index": piece.index, "finish_reason": piece.finish_reason}
        if self._chat:
            choice["delta"] = {"content": piece.text}
        else:
            choice["text"] = piece.text
        if self.asked.return_token_ids:
            choice["token_ids"] = piece.token_ids
        return body | {"choices": [choice]}

    def first_chunk(self, index: int) -> dict[str, Any]:
        """The event with which a chat answer begins."""
        choice = {"index": index, "finish_reason": None}
        choice["delta"] = {"role": "assistant", "content": ""}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def usage_chunk(self, job: Job) -> dict[str, Any]:
        """The last event, for those who asked for it."""
        body = self._head("chat.completion.chunk" if self._chat else "text_completion")
        return body | {"choices": [], "usage": usage(job)}

    def _choice(self, row: Row, index: int) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": row.finish_reason}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": row.text}
        else:
            choice["text"] = row.text
        choice["logprobs"] = None
        if row.sampling.logprobs is not None:
            write = self._chat_logprobs if self._chat else self._text_logprobs
            choice["logprobs"] = write(row.scores)
        if self.asked.return_token_ids:
            choice["token_ids"] = row.ids
        return choice

    def _chat_logprobs(self, scores: list[TokenScore]) -> dict[str, Any]:
        def entry(token: int, logprob: float) -> dict[str, Any]:
            text = self.token_text(token)
            return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

        content = [
            entry(score.token, score.logprob)
            | {"top_logprobs": [entry(token, logprob) for token, logprob in score.top]}
            for score in scores
        ]
        return {"content": content}

    def _text_logprobs(self, scores: list[TokenScore]) -> dict[str, Any]:
        texts = [self._name(score.token) for score in scores]
        ends = [0]
        for text in texts:
            ends.append(ends[-1] + len(text))
        return {
            "tokens": texts,
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [self._top(text, s) for text, s in zip(texts, scores, strict=True)],
            "text_offset": ends[:-1],
        }

    def _name(self, token: int) -> str:
        return (
            f"token_id:{token}" if self.asked.return_tokens_as_token_ids else self.token_text(token)
        )

    def _top(self, text: str, score: TokenScore) -> dict[str, float]:
        top: dict[str, float] = {}
        for token, logprob in score.top:
            # two tokens may have one text, and the likelier keeps it
            top.setdefault(self._name(token), logprob)
        top.setdefault(text, score.logprob)
        return top

    def _of_prompt(self, prompt: Sequence) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.asked.return_token_ids:
            found["prompt_token_ids"] = prompt.ids
        if prompt.score is not None:
            found["prompt_logprobs"] = [None, *(self._prompt_entry(s) for s in prompt.scores)]
        return found

    def _prompt_entry(self, score: TokenScore) -> dict[str, Any]:
        ranked = [
            (token, logprob, rank) for rank, (token, logprob) in enumerate(score.top, start=1)
        ]
        return {
            str(token): {
                "logprob": logprob,
                "rank": rank,
                "decoded_token": self.token_text(token),
            }
            for token, logprob, rank in [*ranked, (score.token, score.logprob, score.rank)]
        }


def usage(job: Job) -> dict[str, int]:
    """Token counts; a prompt of several answers counts once."""
    prompt = sum(len(ids) for ids in {id(row.prompt): row.prompt for row in job.rows}.values())
    completion = sum(len(row.ids) for row in job.rows)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }

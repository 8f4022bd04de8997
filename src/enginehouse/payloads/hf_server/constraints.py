"""Constraints on answers, compiled by xgrammar for the model's vocabulary."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import xgrammar

from hf_server.compilers import Compilers
from hf_server.requests import Constraint

_REMEMBERED = 256


class Constraints:
    """Compiles constraints and caches the results. Safe across threads."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        compilers: Compilers,
        vocabulary_size: int,
        ends: frozenset[int],
    ) -> None:
        self._info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocabulary_size, stop_token_ids=sorted(ends)
        )
        self._compilers = compilers
        self._compilers.know(self._info)
        self._known: OrderedDict[Constraint, xgrammar.CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, constraint: Constraint) -> xgrammar.CompiledGrammar:
        """Compile: milliseconds, at most `compilers.LIMIT` seconds. Raises ApiError (400)."""
        with self._lock:
            if (compiled := self._known.get(constraint)) is not None:
                self._known.move_to_end(constraint)
                return compiled
        serialised = self._compilers.compile(constraint)
        compiled = xgrammar.CompiledGrammar.deserialize_json(serialised, self._info)
        with self._lock:
            self._known[constraint] = compiled
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return compiled


def matcher(compiled: xgrammar.CompiledGrammar) -> xgrammar.GrammarMatcher:
    """The state of one answer under a constraint."""
    return xgrammar.GrammarMatcher(compiled)

"""What constrains an answer, compiled by xgrammar for the model's vocabulary."""

from __future__ import annotations

import json
from typing import Any

import xgrammar

from hf_server.errors import refused
from hf_server.requests import Constraint


class Constraints:
    """Compiles constraints; what was compiled before is remembered. Safe across threads."""

    def __init__(self, tokenizer: Any, *, vocabulary_size: int, ends: frozenset[int]) -> None:
        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocabulary_size, stop_token_ids=sorted(ends)
        )
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=2)

    def compile(self, constraint: Constraint) -> xgrammar.CompiledGrammar:
        """Compile; milliseconds, for a large schema seconds. Raises ApiError (400)."""
        try:
            return self._compile(constraint)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1:]
            raise refused(
                f"the {constraint.kind} constraint cannot be used: {' '.join(reason)}",
                param="response_format" if constraint.kind == "json" else "structured_outputs",
            ) from error

    def _compile(self, constraint: Constraint) -> xgrammar.CompiledGrammar:
        if constraint.kind == "json":
            # White space is where a small model under a schema loops until max_tokens.
            return self._compiler.compile_json_schema(constraint.text, any_whitespace=False)
        if constraint.kind == "regex":
            return self._compiler.compile_regex(constraint.text)
        if constraint.kind == "choice":
            # A JSON string is a literal of xgrammar's EBNF, too, but for escaped surrogates.
            texts = [json.dumps(text, ensure_ascii=False) for text in json.loads(constraint.text)]
            return self._compiler.compile_grammar(f"root ::= {' | '.join(texts)}")
        return self._compiler.compile_grammar(constraint.text)


def matcher(compiled: xgrammar.CompiledGrammar) -> xgrammar.GrammarMatcher:
    """The state of one answer under a constraint."""
    return xgrammar.GrammarMatcher(compiled)

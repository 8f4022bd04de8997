"""Finds calls in a model's text, in the many ways in which models write them."""

from __future__ import annotations

import ast
import json
import re
from bisect import bisect_right
from collections.abc import Collection, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

from enginehouse.core.reasoning import strip_reasoning
from enginehouse.tools.checking import FoundCall

_LONGEST = 100_000  # characters; Python's own parser is slow on nonsense
# Every bracket in a text may open a call, and some never close. The search reads at most this many
# characters, in multiples of the text's length, and each try costs some more.
_TIMES_READ = 20
_TRY = 100
_AT_LEAST = 20_000
_TAGGED = re.compile(r"<(tool_call|function_call|tool|function)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_FENCED = re.compile(r"```[\w-]*\s*\n?(.*?)(?:```|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"<function=([\w.-]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_CALL = re.compile(r"(?<![\w.\"'-])([A-Za-z_][\w.-]*+)\s*+\(")
_BRACKET = re.compile(r"[{\[]")
_STRING = r'"(?:[^"\\]|\\.)*"?'
_TRAILING_COMMA = re.compile(rf"({_STRING})|,(?=\s*[}}\]])", re.DOTALL)
_CONSTANT = re.compile(rf"({_STRING}|'(?:[^'\\]|\\.)*'?)|\b(true|false|null)\b", re.DOTALL)
_CONSTANTS = {"true": "True", "false": "False", "null": "None"}
_NAMES = ("name", "function", "tool", "tool_name", "function_name", "action")
_ARGUMENTS = ("arguments", "parameters", "params", "args", "input", "action_input")
_LISTS = ("calls", "tool_calls")
_OPENING, _CLOSING = "{[(", "}])"
_BESIDE = " \t\r`[](),;.\0"  # what may be beside a call on a line of its own


class _Span(NamedTuple):
    """Part of a text, and the calls in it."""

    start: int
    end: int
    calls: list[FoundCall]


class _Budget:
    """The number of characters that may still be read."""

    def __init__(self, body: str) -> None:
        self._left = _TIMES_READ * len(body) + _AT_LEAST

    def pay(self, characters: int) -> bool:
        """Deduct the cost of one try. False once nothing is left."""
        self._left -= characters + _TRY
        return self._left > 0


def find_calls(text: str, names: Collection[str], *, alone: bool = False) -> tuple[FoundCall, ...]:
    """The calls in `text`, in order; empty if there is none.

    Recognised forms are JSON (also with single quotes, trailing commas and Python's constants) as
    the whole text, in `<tool_call>` tags, in fences and within prose,
    `<function=name>{…}</function>`, and Python calls of one of `names`. The first form that gives
    a call counts. With `alone` a call within prose is only a mention: outside tags a call must
    have its lines to itself. Reasoning contains no calls, except, without `alone`, reasoning that
    never ends.
    """
    text = strip_reasoning(text, keep_unfinished=not alone)[:_LONGEST]
    if functions := [FoundCall(name=n, arguments=_decoded(a)) for n, a in _FUNCTION.findall(text)]:
        return tuple(functions)
    tagged = [body for _, body in _TAGGED.findall(text)]
    for read in (_as_whole, _embedded, _as_python):
        found: list[FoundCall] = []
        for body in tagged or _FENCED.findall(text) or [text]:
            spans = read(body, names)
            kept = _on_own_lines(body, spans) if alone and not tagged else spans
            found += [call for span in kept for call in span.calls]
        if found:
            return tuple(found)
    return ()


def _on_own_lines(body: str, spans: list[_Span]) -> list[_Span]:
    ends = [0, *(span.end for span in spans)]
    words = [body[end : span.start] for end, span in zip(ends, spans, strict=False)]
    rest = "".join(w + "\0" * (s.end - s.start) for w, s in zip(words, spans, strict=True))
    rest += body[ends[-1] :] + "\n"
    lines = rest.split("\n")
    starts = [0, *accumulate(len(line) + 1 for line in lines)]
    alone = [not line.strip(_BESIDE) for line in lines]
    return [span for span in spans if alone[bisect_right(starts, span.start) - 1]]


def _as_whole(body: str, names: Collection[str]) -> list[_Span]:
    return [_Span(0, len(body), _read(body, names))]


def _embedded(body: str, names: Collection[str]) -> list[_Span]:
    found: list[_Span] = []
    budget = _Budget(body)
    at = 0
    while bracket := _BRACKET.search(body, at):
        start = bracket.start()
        end = _balanced(body, start)
        if not budget.pay((end or len(body)) - start):
            break
        calls = _read(body[start:end], names) if end is not None else []
        if end is not None and calls:
            found.append(_Span(start, end, calls))
        at = end if end is not None and calls else start + 1
    return found


def _as_python(body: str, names: Collection[str]) -> list[_Span]:
    found: list[_Span] = []
    budget = _Budget(body)
    end = 0
    for match in _CALL.finditer(body):
        if match.start() < end or match[1] not in names:
            continue
        opening = match.end() - 1
        stop = _balanced(body, opening)
        if not budget.pay((stop or len(body)) - opening):
            break
        arguments = None if stop is None else _keywords(body[opening:stop])
        if stop is not None and arguments is not None:
            calls = [FoundCall(name=match[1], arguments=arguments)]
            found.append(_Span(match.start(), stop, calls))
            end = stop
    return found


def _read(text: str, names: Collection[str]) -> list[FoundCall]:
    try:
        return _calls_of(_decoded(text), names)
    except RecursionError:
        return []


def _calls_of(value: Any, names: Collection[str]) -> list[FoundCall]:
    if isinstance(value, list):
        return [call for part in value for call in _calls_of(part, names)]
    if not isinstance(value, dict):
        return []
    for key, kind in (*((key, list) for key in _LISTS), ("function", dict)):
        if isinstance(value.get(key), kind):
            return _calls_of(value[key], names)
    name = next((value[key] for key in _NAMES if isinstance(value.get(key), str)), None)
    if name is not None:
        arguments = next((value[key] for key in _ARGUMENTS if key in value), None)
        if arguments is not None or name in names:
            return [FoundCall(name=name, arguments={} if arguments is None else arguments)]
    if len(value) == 1 and (only := next(iter(value))) in names and isinstance(value[only], dict):
        return [FoundCall(name=only, arguments=value[only])]
    return []


def _decoded(text: str) -> Any:
    """The value of a text that is JSON or Python, or nearly; None if it is neither."""
    for attempt in _readings(text.strip()):
        try:
            return attempt()
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return None


def _readings(text: str) -> Iterator[Any]:
    bare = _TRAILING_COMMA.sub(r"\1", text)
    yield lambda: json.loads(text)
    yield lambda: json.loads(bare, strict=False)
    yield lambda: _as_json(ast.literal_eval(text))
    yield lambda: _as_json(ast.literal_eval(_with_python_constants(text)))


def _with_python_constants(text: str) -> str:
    return _CONSTANT.sub(lambda m: m[1] or _CONSTANTS[m[2]], text)


def _keywords(arguments: str) -> dict[str, Any] | None:
    """The arguments of a Python call, "(a=1, b='x')"; None unless all are keyword literals."""
    try:
        call = ast.parse(f"f{arguments}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            return None
        return {str(k.arg): _literal(k.value) for k in call.keywords}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[node.id]
    return _as_json(ast.literal_eval(node))


def _as_json(value: Any) -> Any:
    """A Python value as JSON: tuples become arrays. Raises TypeError for other types."""
    return json.loads(json.dumps(value))


def _balanced(text: str, start: int) -> int | None:
    """The position after the bracket that closes the one at `start`, None if there is none."""
    depth, quote, escaped = 0, "", False
    for at in range(start, len(text)):
        character = text[at]
        if escaped:
            escaped = False
        elif quote:
            escaped = character == "\\"
            quote = "" if character == quote else quote
        elif character == '"' or (character == "'" and _opens_quote(text, at)):
            quote = character
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
            if depth == 0:
                return at + 1
    return None


def _opens_quote(text: str, at: int) -> bool:
    """Whether an apostrophe begins a text rather than standing in a word."""
    return at == 0 or not text[at - 1].isalnum()

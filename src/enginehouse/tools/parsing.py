"""Calls in a model's free text, in the many ways in which models write them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from enginehouse.tools.checking import FoundCall

_LONGEST = 100_000  # characters; Python's own parser is slow on nonsense
_MOST_CANDIDATES = 20  # brackets amid words that are looked into
_TAGGED = re.compile(r"<(tool_call|function_call|tool|function)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_FENCED = re.compile(r"```[\w-]*\s*\n?(.*?)(?:```|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"<function=([\w.-]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_CALL = re.compile(r"(?<![\w.\"'])([A-Za-z_][\w.-]*)\s*\(")
_STRING = r'"(?:[^"\\]|\\.)*"?'
_TRAILING_COMMA = re.compile(rf"({_STRING})|,(?=\s*[}}\]])", re.DOTALL)
_CONSTANT = re.compile(rf"({_STRING}|'(?:[^'\\]|\\.)*'?)|\b(true|false|null)\b", re.DOTALL)
_CONSTANTS = {"true": "True", "false": "False", "null": "None"}
_NAMES = ("name", "function", "tool", "tool_name", "function_name", "action")
_ARGUMENTS = ("arguments", "parameters", "params", "args", "input", "action_input")
_LISTS = ("calls", "tool_calls")
_OPENING, _CLOSING = "{[(", "}])"
_BESIDE = " \t\r`[](),;.\0"  # what may stand beside a call on a line of its own


class _Span(NamedTuple):
    """The calls that a part of a text is."""

    start: int
    end: int
    calls: list[FoundCall]


def without_thoughts(text: str) -> str:
    """What a model says behind its thoughts; nothing of thoughts that do not end."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def find_calls(text: str, names: Collection[str], *, alone: bool = False) -> tuple[FoundCall, ...]:
    """The calls in `text`, in their order; none if nothing reads as a call.

    Read are JSON (also with single quotes, trailing commas and Python's constants) as a whole, in
    `<tool_call>` tags, in fences and amid words, `<function=name>{…}</function>`, and Python calls
    of one of `names`. The first form that gives a call counts. With `alone` a call amid words is
    a mention, and none: outside tags it must have its lines to itself. No call is in thoughts;
    only where they do not end, and without `alone`, one is taken all the same.
    """
    text = (without_thoughts(text) if alone else text.rpartition("</think>")[2])[:_LONGEST]
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
    lines = [(rest.rfind("\n", 0, s.start) + 1, rest.find("\n", s.end)) for s in spans]
    return [s for s, (a, b) in zip(spans, lines, strict=True) if not rest[a:b].strip(_BESIDE)]


def _as_whole(body: str, names: Collection[str]) -> list[_Span]:
    return [_Span(0, len(body), _read(body, names))]


def _embedded(body: str, names: Collection[str]) -> list[_Span]:
    found: list[_Span] = []
    at = 0
    for _ in range(_MOST_CANDIDATES):
        at = _first(body, "{[", at)
        end = _balanced(body, at) if at >= 0 else None
        if end is None:
            break
        calls = _read(body[at:end], names)
        if calls:
            found.append(_Span(at, end, calls))
        at = end if calls else at + 1
    return found


def _as_python(body: str, names: Collection[str]) -> list[_Span]:
    found: list[_Span] = []
    end = 0
    for match in _CALL.finditer(body):
        if match.start() < end or match[1] not in names:
            continue
        stop = _balanced(body, match.end() - 1)
        arguments = None if stop is None else _keywords(body[match.end() - 1 : stop])
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
    """The value that a text is in JSON, or in Python, or nearly; None if it is none."""
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
    """The keyword arguments of a Python call, "(a=1, b='x')"; None if it has others or none can."""
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
    """Python's value as JSON has it: tuples are arrays. Raises TypeError for what it has not."""
    return json.loads(json.dumps(value))


def _first(text: str, characters: str, start: int) -> int:
    places = [at for c in characters if (at := text.find(c, start)) >= 0]
    return min(places, default=-1)


def _balanced(text: str, start: int) -> int | None:
    """Where the bracket at `start` is closed (the place behind it), None if it never is."""
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

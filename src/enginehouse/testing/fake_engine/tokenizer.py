"""A lossless tokenizer without a vocabulary file.

Ids 0 to 2 are special tokens, 3 to 258 bytes; then come all pairs and all triples over space and
the ASCII letters. A word (with the space before it) is cut into triples, so that a text's tokens
are a prefix of those of the text with more words behind it.
"""

from __future__ import annotations

import re

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TURN = 2
LONGEST_TOKEN = max(map(len, SPECIAL))
_FIRST_BYTE = len(SPECIAL)
_ALPHABET = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BASE = len(_ALPHABET)
_PLACE = {character: place for place, character in enumerate(_ALPHABET)}
_FIRST_PAIR = _FIRST_BYTE + 256
_FIRST_TRIPLE = _FIRST_PAIR + _BASE**2
VOCABULARY_SIZE = _FIRST_TRIPLE + _BASE**3
_SPLIT = re.compile("|".join(map(re.escape, SPECIAL)) + r"| ?[A-Za-z]+|.", re.DOTALL)


def encode(text: str) -> list[int]:
    """Token ids of `text`; special tokens are recognised in it, as a real tokenizer does."""
    ids: list[int] = []
    for piece in _SPLIT.findall(text):
        if piece in SPECIAL:
            ids.append(SPECIAL.index(piece))
        elif piece[-1] in _PLACE:
            ids.extend(_group(piece[start : start + 3]) for start in range(0, len(piece), 3))
        else:
            ids.extend(_FIRST_BYTE + byte for byte in piece.encode("utf-8", "surrogatepass"))
    return ids


def decode(ids: list[int], *, specials: bool = False) -> str:
    """The text of token ids; special tokens are left out unless asked for."""
    data = b"".join(token_bytes(token, specials=specials) for token in ids)
    return data.decode("utf-8", "replace")


def token_text(token: int) -> str:
    """The text of one token, special or not."""
    return decode([token], specials=True)


def _group(letters: str) -> int:
    if len(letters) == 1:
        return _FIRST_BYTE + ord(letters)
    number = 0
    for letter in letters:
        number = number * _BASE + _PLACE[letter]
    return number + (_FIRST_PAIR if len(letters) == 2 else _FIRST_TRIPLE)


def token_bytes(token: int, *, specials: bool = False) -> bytes:
    """The UTF-8 bytes of one token, perhaps not a whole character."""
    if token < _FIRST_BYTE:
        return SPECIAL[token].encode() if specials else b""
    if token < _FIRST_PAIR:
        return bytes([token - _FIRST_BYTE])
    number, length = (
        (token - _FIRST_PAIR, 2) if token < _FIRST_TRIPLE else (token - _FIRST_TRIPLE, 3)
    )
    letters = []
    for _ in range(length):
        number, place = divmod(number, _BASE)
        letters.append(_ALPHABET[place])
    return "".join(reversed(letters)).encode()

# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Reading a large JSON object entry by entry, once, in little memory.

COCO's training annotations are 450 MB of text and several GB of Python
objects. Here every entry of the large lists is checked and released.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CHUNK = 1 << 22  # characters
# An error this near to the end of the buffer may come from missing text.
_NEAR_THE_END = 1000

_SPACE = re.compile(r'[ \t\n\r]*')
_NEXT = re.compile(r'[ \t\n\r]*,[ \t\n\r]*')
# It begins with a plain character, which makes the search fast.
_NUMBERS = re.compile(r'\[[-+0-9.,eE \n\r\t]{24,}\]')


class DamagedJSON(ValueError):
    """A text that is truncated or not JSON; the message says where."""


def _shorten(found: re.Match) -> str:
    """A list of six numbers or more becomes its length, as a string."""
    text, start = found[0], found.start()
    commas = text.count(',')
    # The runs of a mask stay, as their sum matters.
    if commas < 5 or 'counts' in found.string[max(start - 12, 0) : start]:
        return text
    return f'"{commas + 1}"'


class JSONStream:
    """The entries of a JSON object, in the order of the file.

    Args:
        path: The file, in UTF-8.
        entries: What to call with each entry of the lists of these names.
        shortened: Lists whose entries hold many numbers. There, a list of
            six numbers or more is replaced by its length, a string of
            digits, which takes a fifth of the time; ``counts`` stay.
    """

    def __init__(
        self,
        path: Path,
        entries: dict[str, Callable[[Any], None]],
        shortened: tuple[str, ...] = (),
    ) -> None:
        self._entries = entries
        self._shortened = shortened
        self._shortening = False
        self._text, self._at = '', 0
        self._rest = ''  # an unfinished list of numbers
        self._ended = False
        self._decode = json.JSONDecoder().raw_decode
        self._place = 'at its start'
        with path.open(encoding='utf-8', newline='') as self._file:
            self.keys = self._read()

    def _read(self) -> dict[str, Any]:
        """Reads everything; returns the keys, and what is no such list."""
        found: dict[str, Any] = {}
        first = self._peek()
        if first != '{':
            what = {'': 'is empty', '[': 'holds a list'}.get(
                first, f'starts with {first!r}'
            )
            raise DamagedJSON(f'{what}, not a JSON object')
        self._at += 1
        if self._peek() == '}':
            self._at += 1
        else:
            while self._pair(found):
                pass
        if self._peek():
            raise DamagedJSON('has text after its end')
        return found

    def _pair(self, found: dict[str, Any]) -> bool:
        """Reads a key and its value; returns whether more follow."""
        if self._peek() != '"':
            raise self._damage('a name in double quotes is missing')
        key = self._value()
        if self._peek() != ':':
            raise self._damage(f'the colon after {key!r} is missing')
        self._at += 1
        if self._peek() == '[' and key in self._entries:
            self._list(key)
            found[key] = None
        else:
            found[key] = self._value()
        self._place = f'after {key!r}'
        after = self._peek()
        self._at += 1
        if after not in (',', '}'):
            raise self._damage('a comma or brace is missing')
        return after == ','

    def _list(self, key: str) -> None:
        """Calls the function of a list with each of its entries."""
        call, number = self._entries[key], 0
        if key in self._shortened:
            self._shortening = True
            self._text, self._at = self._text[self._at :], 0
            self._rest, self._text = self._text, ''
            self._shorten_rest()
        self._at += 1
        self._peek()
        if self._text[self._at : self._at + 1] == ']':
            self._at += 1
        else:
            more = True
            while more:
                self._place = f'in entry {number} of {key!r}'
                value = self._value()
                call(value)
                number += 1
                comma = _NEXT.match(self._text, self._at)
                if comma and comma.end() < len(self._text):
                    self._at = comma.end()
                    continue
                after = self._peek()
                if after not in (',', ']'):
                    raise self._damage('a comma or bracket is missing')
                self._at += 1
                more = after == ','
                self._peek()
        self._shortening = False

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                near = error.pos > len(self._text) - _NEAR_THE_END
                cut_off = near or error.msg.startswith('Unterminated')
                if self._ended or not cut_off:
                    raise self._damage(error.msg.lower()) from error
            self._more()

    def _peek(self) -> str:
        """The next character that is no space, '' at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ''
            self._more()

    def _more(self) -> None:
        self._text, self._at = self._text[self._at :], 0
        read = self._file.read(_CHUNK)
        self._ended = not read
        self._rest += read
        if self._shortening:
            self._shorten_rest()
        else:
            self._text, self._rest = self._text + self._rest, ''

    def _shorten_rest(self) -> None:
        """Passes on what was read, up to a list that has no end yet."""
        cut = len(self._rest)
        opening = self._rest.rfind('[')
        unfinished = opening >= 0 and self._rest.find(']', opening) < 0
        # A list of numbers is short; anything longer is none.
        if unfinished and not self._ended and cut - opening < _CHUNK // 2:
            cut = opening
        text, self._rest = self._rest[:cut], self._rest[cut:]
        # Some characters of what came before, as a match looks back at them.
        before = self._text[-12:]
        shorter = _NUMBERS.sub(_shorten, before + text)
        self._text += shorter[len(before) :]

    def _damage(self, what: str) -> DamagedJSON:
        broken = self._ended and self._at >= len(self._text) - 1
        how = 'is truncated' if broken else f'is not JSON ({what})'
        return DamagedJSON(f'{how} {self._place}')


def check_encoding(path: Path) -> str | None:
    """What is wrong with the first bytes of a text in UTF-8, if anything."""
    with path.open('rb') as file:
        start = file.read(4)
    if start.startswith(b'\xef\xbb\xbf'):
        return 'begins with a byte-order mark'
    if start[:2] in (b'\xff\xfe', b'\xfe\xff'):
        return 'is written in UTF-16'
    if start[:2] == b'\x1f\x8b':
        return 'is compressed'
    return None


__all__ = ['DamagedJSON', 'JSONStream', 'check_encoding']

"""How the schema says what a field is: numbers laid out in bytes, and values in JSON.

A field in bytes has a type and a shape, of numbers or of named dimensions; together they give its
exact size. A value in JSON has a form that its text must have to the last character, so that no
space, no second key of one name and no further digit can carry anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fellrec.errors import WireError

SIZES: Mapping[str, int] = {
    "byte": 1,
    "utf-8": 1,
    "u8": 1,
    "u16": 2,
    "u32": 4,
    "u64": 8,
    "i8": 1,
    "i32": 4,
    "f16": 2,
    "bf16": 2,
    "f32": 4,
    "f64": 8,
}
"""Bytes of one value of each type; all are little-endian."""

UINT32, SAFE = 2**32 - 1, 2**53


class UndeclaredError(WireError):
    """A message holds something that the schema does not declare."""


@dataclass(frozen=True)
class Field:
    """A field in bytes.

    shape: numbers and names of dimensions; a number stored in an earlier field of this name, or one
    that the whole recording agrees on. flag: a bit of `flags` that has to be set for the field to
    be there, 0 for none. codec: the number of the codec that writes it so, None for any. fixed: the
    only bytes it may have. derived: it follows from the bytes around it, so it can't say anything
    of its own.
    """

    name: str
    dtype: str
    shape: tuple[str | int, ...]
    tells: str
    flag: int = 0
    codec: int | None = None
    fixed: bytes = b""
    derived: bool = False


class Form(Protocol):
    """What a value in JSON may be. words, size: for readers; size is of the value's text alone."""

    @property
    def words(self) -> str:
        """What it is."""

    @property
    def size(self) -> str:
        """How many bytes."""

    def check(self, text: str, path: str) -> None:
        """Raise UndeclaredError unless a value's text has this form."""


@dataclass(frozen=True)
class Key:
    """A key of a JSON object. dimension: one that this whole number gives its value to.

    loose: why equal runs may differ in it ("random", "time", "address"), or that it is a digest of
    the catalogue in its order ("catalogue"); "" where equal runs agree.
    """

    name: str
    form: Form
    tells: str
    dimension: str = ""
    loose: str = ""


@dataclass(frozen=True)
class Plain:
    """A number, a truth value or null. pattern: of its text."""

    words: str
    size: str
    pattern: str
    fits: Callable[[str], bool] = lambda text: True

    def check(self, text: str, path: str) -> None:
        """See `Form`."""
        if not re.fullmatch(self.pattern, text) or not self.fits(text):
            raise UndeclaredError(f"{path} is {text[:40]!r}, declared as {self.words}")


@dataclass(frozen=True)
class Text:
    """A string. most: UTF-8 bytes. pattern: of the string. alone: what else it has to be."""

    words: str
    most: int
    pattern: str = r"[^\x00-\x1f]*"
    alone: Callable[[str], bool] = lambda text: True
    exactly: bool = False

    @property
    def size(self) -> str:
        """See `Form`."""
        return f"{self.most + 2}" if self.exactly else f"2 … {self.most + 2}"

    def check(self, text: str, path: str) -> None:
        """See `Form`."""
        value = json.loads(text)
        if not isinstance(value, str):
            raise UndeclaredError(f"{path} is {text[:40]!r}, declared as {self.words}")
        size = len(value.encode())
        if size > self.most or (self.exactly and size != self.most):
            raise UndeclaredError(f"{path} takes {size} bytes, declared are {self.size}")
        if not re.fullmatch(self.pattern, value) or not self.alone(value):
            raise UndeclaredError(f"{path} is {value[:40]!r}, declared as {self.words}")


@dataclass(frozen=True)
class Many:
    """A list of values of one form."""

    each: Form
    most: int

    @property
    def words(self) -> str:
        """See `Form`."""
        return f"list of k ≤ {self.most}: {self.each.words}"

    @property
    def size(self) -> str:
        """See `Form`."""
        return f"max(2, k + 1) + k × ({self.each.size})"

    def check(self, text: str, path: str) -> None:
        """See `Form`."""
        values = list(items(text, path))
        if len(values) > self.most:
            raise UndeclaredError(f"{path} has {len(values)} entries, declared are {self.most}")
        for value in values:
            self.each.check(value, f"{path}[]")


@dataclass(frozen=True)
class Named:
    """An object with keys of a form, such as clients' names."""

    key: Text
    each: Form

    @property
    def words(self) -> str:
        """See `Form`."""
        return f"object of k keys ({self.key.words}): {self.each.words}"

    @property
    def size(self) -> str:
        """See `Form`."""
        return f"max(2, 2 k + 1) + k × ({self.key.size} + {self.each.size})"

    def check(self, text: str, path: str) -> None:
        """See `Form`."""
        for name, value in members(text, path):
            self.key.check(json.dumps(name), f"{path}'s key")
            self.each.check(value, f"{path}.{name}")


@dataclass(frozen=True)
class Object:
    """An object of exactly these keys, in this order."""

    keys: tuple[Key, ...]
    words: str = "object, see below"
    size: str = field(default="the sum of its keys", repr=False)

    def check(self, text: str, path: str) -> None:
        """See `Form`."""
        for key, value in self.split(text, path):
            key.form.check(value, f"{path}.{key.name}")

    def split(self, text: str, path: str) -> list[tuple[Key, str]]:
        """Return each key with its value's text."""
        found = list(members(text, path))
        names, declared = [name for name, _ in found], [key.name for key in self.keys]
        if names != declared:
            raise UndeclaredError(f"{path} has the keys {names}, declared are {declared}")
        return [(key, value) for key, (_, value) in zip(self.keys, found, strict=True)]


def whole(most: int = UINT32) -> Plain:
    """A whole number of 0 … most, written without sign or leading zeros."""
    return Plain(
        f"integer, 0 … {_power(most)}",
        f"1 … {len(str(most))}",
        r"0|[1-9][0-9]*",
        lambda text: int(text) <= most,
    )


def one_of(*values: str) -> Text:
    """One of some words."""
    pattern = "|".join(map(re.escape, values))
    return Text(" or ".join(f'"{value}"' for value in values), max(map(len, values)), pattern)


NUMBER = Plain(
    "float64 as its shortest decimal, or NaN or Infinity",
    "1 … 25",
    r"-?[0-9]{1,18}(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?|NaN|-?Infinity",
    lambda text: len(text) <= 25,
)
TRUTH = Plain("true or false", "4 or 5", "true|false")


def hexadecimal(digits: int) -> Text:
    """So many hexadecimal digits."""
    return Text(f"{digits} hexadecimal digits", digits, "[0-9a-f]*", exactly=True)


def items(text: str, path: str) -> Iterator[str]:
    """Yield the texts of a list's values."""
    place = _past(text, 0, "[", path)
    while text[place : place + 1] != "]":
        if place > 1:
            place = _past(text, place, ",", path)
        end = _value(text, place, path)
        yield text[place:end]
        place = end
    _end(text, place + 1, path)


def members(text: str, path: str) -> Iterator[tuple[str, str]]:
    """Yield an object's keys with the texts of their values."""
    seen: set[str] = set()
    place = _past(text, 0, "{", path)
    while text[place : place + 1] != "}":
        if place > 1:
            place = _past(text, place, ",", path)
        end = _value(text, place, path)
        name = json.loads(text[place:end])
        if not isinstance(name, str) or name in seen:
            raise UndeclaredError(f"{path} has a key twice, or one that is no text")
        seen.add(name)
        place = _past(text, end, ":", path)
        end = _value(text, place, path)
        yield name, text[place:end]
        place = end
    _end(text, place + 1, path)


def rows(keys: Sequence[Key], prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Yield all keys with their paths, those of objects within too."""
    for key in keys:
        yield prefix + key.name, key
        inner: Any = key.form
        path = prefix + key.name
        while isinstance(inner, Many | Named):
            path += "[]" if isinstance(inner, Many) else ".*"
            inner = inner.each
        if isinstance(inner, Object):
            yield from rows(inner.keys, f"{path}.")


def _past(text: str, place: int, sign: str, path: str) -> int:
    if text[place : place + 1] != sign:
        raise UndeclaredError(f"{path} has {text[place : place + 1]!r} where {sign!r} is due")
    return place + 1


def _value(text: str, place: int, path: str) -> int:
    """Return where the value that begins here ends."""
    if text[place : place + 1].isspace():
        raise UndeclaredError(f"{path} has a space outside of a text")
    try:
        return json.JSONDecoder().raw_decode(text, place)[1]
    except (ValueError, RecursionError):
        raise UndeclaredError(f"{path} is not JSON") from None


def _end(text: str, place: int, path: str) -> None:
    if place != len(text):
        raise UndeclaredError(f"{path} goes on after its end")


def _power(most: int) -> str:
    return {UINT32: "2³² - 1", SAFE: "2⁵³"}.get(most, str(most))

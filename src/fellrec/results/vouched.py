"""Which earlier code today's is vouched to match: `same.json` in a folder of results.

    [
      {
        "recommender": "hllm",
        "code": "0f3c…",          # this code gives
        "as": "cba1…",            # what this code gave,
        "shown_by": ["fellrec-s0-cef7acd8f7d0"]      # as these cells showed, made anew
      }
    ]

Digests are those of `federation.origin.code_digest`. Entries chain: what gives what another gave
gives also what that was vouched for. The file is written by `vouching.py` and committed beside the
cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, TypeAdapter, ValidationError

from fellrec.config import Section, Text, Tuple
from fellrec.errors import RunError
from fellrec.files import alone_in, read_json, write_json

SAME = "same.json"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
CellName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class Entry(Section):
    """Code that was shown to give what other code gave; see the module."""

    recommender: Text
    """Whose code it is."""
    code: Digest
    """Digest of the newer code."""
    gave: Digest = Field(alias="as")
    """Digest of the earlier code."""
    shown_by: Tuple[CellName]
    """Cells of the earlier code that the newer one made anew, equal bit for bit."""


_FILE = TypeAdapter(list[Entry])


@dataclass(frozen=True)
class Vouched:
    """All that is vouched for in a folder of results."""

    entries: tuple[Entry, ...] = ()

    @classmethod
    def read(cls, results: Path) -> Self:
        """Read the file of a folder of results; nothing is vouched for where there is none.

        Raises RunError for a file that is damaged.
        """
        path = results / SAME
        if not path.exists():
            return cls()
        try:
            return cls(tuple(_FILE.validate_python(read_json(path))))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise RunError(
                f"{path}: is damaged ({where or 'all of it'}: {first['msg']}); restore it, or "
                "remove it and vouch again"
            ) from None

    def shown_by(
        self, recommender: str, code: str, made_by: Iterable[str]
    ) -> tuple[str, ...] | None:
        """Return which cells showed that a code gives what is made by these codes.

        Digests all. None where that is not known, or where nothing is said of who made it; no cells
        where the code itself did.
        """
        given = self._given(recommender, code)
        codes = set(made_by)
        if not codes or not codes <= given.keys():
            return None
        return tuple(sorted({cell for each in codes for cell in given[each]}))

    def link(self, recommender: str, one: str, other: str) -> tuple[str, ...] | None:
        """Return which cells showed that two codes give the same, whichever is the newer.

        Neither need have given what the other gave: a third that gave what both did will do. None
        where that is not known.
        """
        found = self._given(recommender, one, either_way=True).get(other)
        return None if found is None else tuple(sorted(set(found)))

    def _given(
        self, recommender: str, code: str, *, either_way: bool = False
    ) -> Mapping[str, tuple[str, ...]]:
        """Return the codes whose results this code gives, each with the cells that showed it.

        either_way: also those which give what one of these gave, and so on.
        """
        steps = [(e.code, e.gave, e) for e in self.entries if e.recommender == recommender]
        if either_way:
            steps += [(gave, newer, entry) for newer, gave, entry in steps]
        given: dict[str, tuple[str, ...]] = {code: ()}
        open_ = [code]
        while open_:
            here = open_.pop(0)
            for start, end, entry in steps:
                if start == here and end not in given:
                    given[end] = (*given[here], *entry.shown_by)
                    open_.append(end)
        return given


def write_down(results: Path, entries: Iterable[Entry]) -> None:
    """Add entries to the file; cells that show what others showed before join them.

    Raises RunError where the file is damaged or can't be written.
    """
    try:
        with alone_in(results, "another process writes there", math.inf):
            cells: dict[tuple[str, str, str], set[str]] = {}
            for entry in (*Vouched.read(results).entries, *entries):
                key = entry.recommender, entry.code, entry.gave
                cells.setdefault(key, set()).update(entry.shown_by)
            write_json(
                results / SAME,
                [entry_of(*key, shown).model_dump(by_alias=True) for key, shown in cells.items()],
            )
    except OSError as error:
        raise RunError(f"{results / SAME}: can't be written ({error.strerror or error})") from error


def entry_of(recommender: str, code: str, gave: str, shown_by: Iterable[str]) -> Entry:
    """Return an entry, its cells by name; RunError for a digest or a name that is none."""
    values = {"recommender": recommender, "code": code, "as": gave}
    try:
        return Entry.model_validate({**values, "shown_by": tuple(sorted(shown_by))})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RunError(f"can't vouch for {first['input']!r:.60}: {first['msg']}") from None

"""GroupLens' own MovieLens-100K archive as a source: its files rewritten in RecBole's form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fellrec.data.fetch import File, download, read_entry
from fellrec.errors import SourceError

# In the order of the archive's 19 flags.
GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)


@dataclass(frozen=True)
class MovieLensArchive:
    """GroupLens' own MovieLens-100K archive, rewritten as RecBole files.

    The archive gives no checksum for RecBole's form, and that form's few slips (item 267 is
    "unkonwn", item 1412 has the year "V") are not copied; the row counts are checked instead.
    """

    url: str
    limit: int = 20 << 20
    exact: bool = False

    @property
    def label(self) -> str:
        """The address."""
        return self.url

    def fetch(self, files: Sequence[File], folder: Path) -> None:
        """Download the archive and write `ml-100k.inter`, `.item` and `.user`."""
        archive = folder / ".archive"
        download(self.url, archive, self.limit)
        # The archive's texts are Latin-1, as its README does not say but its bytes do.
        log, items, users = (
            read_entry(archive, f"ml-100k/{name}", self.limit).decode("latin-1")
            for name in ("u.data", "u.item", "u.user")
        )
        archive.unlink()
        written = {
            "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + log,
            "ml-100k.item": movielens_items(items),
            "ml-100k.user": "user_id:token\tage:token\tgender:token\toccupation:token"
            "\tzip_code:token\n" + users.replace("|", "\t"),
        }
        for file in files:
            (folder / file.name).write_text(written[file.name], encoding="utf-8", newline="")


def movielens_items(text: str) -> str:
    """Rewrite `u.item` (id|title (year)|date|video date|address|19 genre flags) as a `.item` file.

    Raises:
        SourceError: a line of another shape.
    """
    lines = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    for number, line in enumerate(text.rstrip("\n").split("\n"), start=1):
        cells = line.split("|")
        flags = cells[5:]
        if len(flags) != len(GENRES) or set(flags) - {"0", "1"}:
            raise SourceError(f"u.item, line {number} is not in MovieLens-100K's form")
        dated = re.fullmatch(r"(.*?)\s*\((\d{4})\).*", cells[1])
        title, year = dated.groups() if dated else (cells[1], "")
        genres = [genre for genre, flag in zip(GENRES, flags, strict=True) if flag == "1"]
        lines.append("\t".join([cells[0], title, year, " ".join(genres)]))
    return "\n".join(lines) + "\n"

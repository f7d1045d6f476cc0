"""Files of a known form: from disk, or from the public addresses they can be had at.

A name and `fellrec data import --form` go the same way: what `FormFiles` brings is what
`import_files` makes of the same two files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fellrec.data import amazon
from fellrec.data.atomic import write_atomic
from fellrec.data.fetch import File, download
from fellrec.data.microlens import read_microlens
from fellrec.data.streams import Imported
from fellrec.data.tables import read_table
from fellrec.errors import ConfigError

TABLE, MICROLENS = "table", "microlens"
FORMS = (TABLE, *amazon.FORMS, MICROLENS)
LEFT_OUT = "left-out.txt"


def import_files(
    interactions: Path,
    items: Path,
    *,
    form: str = TABLE,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    title: str | None = None,
    attributes: Sequence[str] = (),
    k: int = 0,
) -> Imported:
    """Build a data set from a file of interactions and a file of items.

    Args:
        interactions: who took what when.
        items: what each item is called.
        form: "table", of which the columns must be named, or one whose columns are known:
            "amazon-2018", "amazon-2023", "microlens".
        user, item, time, title, attributes: a table's columns, as in `import_table`.
        k: keep users and items with at least this many interactions; 0 keeps all.

    Raises:
        ConfigError: an unknown form, a table without its columns, columns for another form.
        DataError: what the form's reader refuses, or nothing that is left.
    """
    named = {"user": user, "item": item, "time": time, "title": title}
    if form == TABLE:
        if user is None or item is None or time is None or title is None:
            lacking = ", ".join(name for name, column in named.items() if column is None)
            raise ConfigError(f"form '{TABLE}' needs the columns' names: {lacking}")
        return read_table(interactions, items, (user, item, time, title), attributes, k)
    if form not in FORMS:
        raise ConfigError(f"unknown form '{form}'; choose {', '.join(FORMS)}")
    given = [name for name, column in {**named, "attribute": attributes or None}.items() if column]
    if given:
        raise ConfigError(f"form '{form}' has columns of its own; leave out {', '.join(given)}")
    if form == MICROLENS:
        return read_microlens(interactions, items, k)
    return amazon.read_amazon(interactions, items, amazon.FORMS[form], k)


@dataclass(frozen=True)
class FormFiles:
    """Two public files of a known form, rewritten as RecBole files.

    Attributes:
        name: of the data set, and so of the files written.
        base: address of the folder, https:// or file://.
        interactions, items: the files' paths below it.
        form: as in `import_files`.
        k: the core that is kept; 0 keeps all.
        limit: most bytes of each file.
    """

    name: str
    base: str
    interactions: str
    items: str
    form: str
    k: int
    limit: int
    exact: bool = False

    @property
    def label(self) -> str:
        """The addresses."""
        return f"{self.base} ({self.interactions}, {self.items})"

    def fetch(self, files: Sequence[File], folder: Path) -> None:
        """Download both files; write `NAME.inter`, `NAME.item` and what was left out."""
        interactions, items = (
            folder / f".{Path(path).name}" for path in (self.interactions, self.items)
        )
        download(f"{self.base}/{self.items}", items, self.limit)
        download(f"{self.base}/{self.interactions}", interactions, self.limit)
        found = import_files(interactions, items, form=self.form, k=self.k)
        interactions.unlink()
        items.unlink()
        remarks = "".join(f"{line}\n" for line in found.remarks())
        (folder / LEFT_OUT).write_text(remarks, encoding="utf-8")
        write_atomic(replace(found.dataset, name=self.name), folder)

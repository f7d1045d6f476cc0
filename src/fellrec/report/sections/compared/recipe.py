"""What all rows share, what each changes, and by which command each cell was made."""

from __future__ import annotations

from collections.abc import Mapping

from fellrec.comparison.rows import Compared
from fellrec.config import RunConfig
from fellrec.report import words
from fellrec.report.blocks import Block, Listing, Table
from fellrec.report.sections.compared.view import shown_value


def blocks(compared: Compared) -> list[Block]:
    """Show the resolved recipe, the changes and the commands; ConfigError as in reading a file."""
    file = compared.file
    settings = {**file.set, **_first(compared), "seed": file.seeds[0]}
    common = RunConfig.from_toml(file.recipe, settings).to_toml()
    found: list[Block] = [_changes(compared), *_axes(compared)]
    some = "the first seed and table" if file.axes else "the first seed"
    label = f"What all rows start from, resolved, for {some} (TOML)"
    found.append(Listing(label, common))
    commands = [
        f"{cell.name}\n    {cell.origin.get('command', 'a peer: fellrec compare makes it')}"
        for table in compared.tables
        for row in table.rows
        for cell in row.cells
    ]
    if commands:
        content = "\n".join(dict.fromkeys(commands)) + "\n"
        found.append(Listing("The command that makes each cell", content))
    return found


def _first(compared: Compared) -> dict[str, object]:
    """Return what the axes set in the first table."""
    settings: dict[str, object] = {}
    for key, values in compared.file.axes.items():
        settings |= next(iter(values.values())) if isinstance(values, dict) else {key: values[0]}
    return settings


def _changes(compared: Compared) -> Table:
    rows = [
        [peer, "a peer: recommends by itself, reads data and evaluation only"]
        for peer in compared.file.peers
    ]
    for label, settings in compared.file.strategies.items():
        rows.append([label, settings_text(settings) or "nothing: the recipe as it is"])
    return Table("What each row changes in the recipe", ["strategy", "changes"], rows, words=(1,))


def _axes(compared: Compared) -> list[Table]:
    if not compared.file.axes:
        return []
    rows = []
    for key, values in compared.file.axes.items():
        if isinstance(values, dict):
            rows += [[f"{key} = {name}", settings_text(own)] for name, own in values.items()]
        else:
            rows.append([key, ", ".join(map(shown_value, values))])
    caption = f"Axes: all rows once for each value, {words.several(len(compared.tables), 'table')}"
    return [Table(caption, ["axis", "values"], rows, words=(1,))]


def settings_text(settings: Mapping[str, object]) -> str:
    """Write settings on a line."""
    return ", ".join(f"{key} = {shown_value(value)}" for key, value in settings.items())

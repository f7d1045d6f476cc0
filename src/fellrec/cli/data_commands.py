"""Commands for data: import, list."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fellrec import console as show

data = typer.Typer(no_args_is_help=True, help="Bring your own data; see what has a name.")


@data.command("import")
def import_(
    interactions: Annotated[
        Path,
        typer.Option(
            "--interactions",
            metavar="FILE",
            help="Who took what when. A table: .csv, .tsv, .jsonl, .parquet.",
        ),
    ],
    items: Annotated[
        Path, typer.Option("--items", metavar="FILE", help="The items and their texts.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make.")],
    form: Annotated[
        str,
        typer.Option(
            "--form",
            help="table, whose columns you name, amazon-2018, amazon-2023 or microlens.",
        ),
    ] = "table",
    user: Annotated[
        str | None, typer.Option("--user", metavar="COLUMN", help="Column of user ids.")
    ] = None,
    item: Annotated[
        str | None,
        typer.Option("--item", metavar="COLUMN", help="Column of item ids, in both files."),
    ] = None,
    time: Annotated[
        str | None, typer.Option("--time", metavar="COLUMN", help="Column of times.")
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", metavar="COLUMN", help="Column of titles.")
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            "--attribute", metavar="COLUMN", help="Further text column of the items. Repeatable."
        ),
    ] = None,
    k_core: Annotated[
        int,
        typer.Option(
            "--k-core", min=0, help="Keep users and items with this many interactions; 0: all."
        ),
    ] = 0,
) -> None:
    """Turn a file of interactions and one of items into a data set that a recipe can name."""
    from fellrec.data.atomic import write_atomic
    from fellrec.data.folders import new_folder
    from fellrec.data.forms import import_files

    with new_folder(out) as folder:
        imported = import_files(
            interactions,
            items,
            form=form,
            user=user,
            item=item,
            time=time,
            title=title,
            attributes=attribute or [],
            k=k_core,
        )
        write_atomic(imported.dataset, folder)
    console = show.make_console()
    for remark in imported.remarks():
        console.print(remark, soft_wrap=True)
    counts = {
        "users": len(imported.dataset.users),
        "items": len(imported.dataset.catalogue),
        "interactions": len(imported.dataset.interactions),
    }
    said = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    command = shlex.join(["fellrec", "train", "demo", "--set", f"data.source={out}"])
    console.print(f"wrote {out}: {said}", soft_wrap=True)
    console.print(f"go on: {command}", soft_wrap=True)


@data.command("list")
def list_() -> None:
    """List data sets and models that have a name, and where they come from."""
    from fellrec.data.sources import known

    show.make_console().print(show.known_table(known()))

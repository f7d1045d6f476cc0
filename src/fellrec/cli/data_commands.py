"""Commands for data: import, a client's file, a data set divided into such files, list."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fellrec import console as show
from fellrec.cli.shared import Recipe, Settings
from fellrec.errors import ConfigError

if TYPE_CHECKING:
    from fellrec.data.splits import SplitKind

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
    # With a slash it is a folder, whatever data sets have that name, and no number.
    source = out if out.is_absolute() else f"./{out}"
    command = shlex.join(["fellrec", "train", "demo", "--set", f"data.source={source}"])
    console.print(f"wrote {out}: {said}", soft_wrap=True)
    console.print(f"go on: {command}", soft_wrap=True)


@data.command("client")
def client(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="This party's own data, as `fellrec data import` writes them: RecBole files.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="File to make, such as north.fellrec.")
    ],
    catalogue: Annotated[
        Path | None,
        typer.Option(
            "--catalogue",
            metavar="FOLDER",
            help="Another such folder, whose items all parties share; no more of it is read. "
            "Default: the items of FOLDER itself.",
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            "--split",
            help="As the recipe's data.split: leave-one-out, last-5, global-time or files.",
        ),
    ] = "leave-one-out",
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="What all parties call the data set. Default: the name of FOLDER's files.",
        ),
    ] = None,
) -> None:
    """Make the one file that a client needs in a deployment, from a party's own interactions.

    It stays with the party. Catalogue, split and name have to be the same at all parties.
    """
    from fellrec.data.atomic import read_catalogue
    from fellrec.data.client_file import make_client_file

    if out.exists():
        raise ConfigError(f"{out} exists already; choose another name, or delete it")
    made = make_client_file(
        out,
        folder,
        cast("SplitKind", split),
        catalogue=None if catalogue is None else read_catalogue(catalogue),
        dataset_name=name,
    )
    console = show.make_console()
    if made.split.dropped:
        console.print(f"left out users with too few interactions: {made.split.dropped:,}")
    said = f"{len(made.split):,} users, {len(made.catalogue):,} items"
    console.print(f"wrote {out}: {said}; only its owner can read it", soft_wrap=True)
    alike = f"name {made.dataset_name}, split {split}, catalogue {made.catalogue_digest[:16]}"
    console.print(f"the same at all parties: {show.plain(alike)}", soft_wrap=True)
    console.print(
        f"go on: name it in this client's SuperNode, --node-config 'data=\"{out.resolve()}\" …' "
        "(docs/deployment.md)",
        soft_wrap=True,
    )


@data.command("divide")
def divide(
    recipe: Recipe,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make.")],
    settings: Settings = None,
) -> None:
    """Divide a recipe's data over its clients, a file for each: to try a deployment out.

    They are the clients and users of `fellrec train` with the same recipe.
    """
    from fellrec.config import RunConfig, parse_override
    from fellrec.federation.deployment.dividing import divide

    config = RunConfig.from_toml(recipe, dict(map(parse_override, settings or [])))
    console = show.make_console()
    for piece in divide(config, out):
        counts = f"{piece.users:,} users, {piece.interactions:,} interactions"
        console.print(f"{show.plain(piece.client)}: {counts}, {piece.path}", soft_wrap=True)
    console.print("go on: give each client its own file (docs/deployment.md)", soft_wrap=True)


@data.command("list")
def list_() -> None:
    """List data sets and models that have a name, and where they come from."""
    from fellrec.data.sources import known

    show.make_console().print(show.known_table(known()))

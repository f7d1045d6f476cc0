"""`fellrec data client` and `fellrec data divide`: what they write is what a client trains from."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fellrec.cli import app
from fellrec.data.client_file import ClientFile, read_client_file
from fellrec.data.packed_texts import catalogue_digest
from fellrec.federation.shares import share_data
from tests.toys import SHOPS, Toys

ITEMS = "item_id:token\ttitle:token_seq\nx\tOne\ny\tTwo\nz\tThree\n"
HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    """Return a folder with nothing but the items that all parties share."""
    return write(tmp_path / "all", **{"all.item": ITEMS})


@pytest.fixture
def party(tmp_path: Path) -> Path:
    """Return a party's folder: one user to be split, one with too little."""
    rows = "a\tz\t1\na\tx\t2\na\ty\t3\nb\tx\t1\n"
    return write(tmp_path / "shop", **{"shop.inter": HEADER + rows, "shop.item": ITEMS})


def write(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def call(*words: object) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, words)])


def refused(result: Result) -> str:
    """Return the one line that a refused command printed on standard error."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")
    return result.stderr.removeprefix("error: ").strip()


def users(file: ClientFile) -> dict[str, list[list[int]]]:
    """Return each user's training, validation and test items."""
    parts = [file.split.train, file.split.valid, file.split.test]
    return {
        name: [part[number].tolist() for part in parts]
        for number, name in enumerate(file.split.users)
    }


def test_a_party_s_own_interactions_become_its_file(party: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "shop.fellrec"
    result = call("client", party, "--out", out)
    assert result.exit_code == 0, result.output
    file = read_client_file(out)
    assert users(file) == {"a": [[2], [0], [1]]}
    assert (file.dataset_name, file.split_kind) == ("shop", "leave-one-out")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    lines = result.stdout.splitlines()
    assert lines[0] == "left out users with too few interactions: 1"
    assert lines[1] == f"wrote {out}: 1 users, 3 items; only its owner can read it"
    digest = catalogue_digest(file.catalogue)[:16]
    assert lines[2].endswith(f"name shop, split leave-one-out, catalogue {digest}")
    assert f'data="{out}"' in lines[3]
    before = out.read_bytes()
    assert "exists already" in refused(call("client", party, "--out", out))
    assert out.read_bytes() == before


def test_parties_that_share_a_catalogue_number_its_items_alike(
    party: Path, catalogue: Path, tmp_path: Path
) -> None:
    # The party's own list has another order; with the shared one it need not be there at all.
    (party / "shop.item").write_text("item_id:token\ttitle:token_seq\nz\tDrei\nx\tEins\ny\tZwei\n")
    told = ("--catalogue", catalogue, "--name", "shops", "--split", "global-time")
    files = []
    for name in ("first", "second"):
        result = call("client", party, *told, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert "name shops, split global-time" in result.stdout
        files.append(read_client_file(tmp_path / name))
        (party / "shop.item").unlink(missing_ok=True)
    assert users(files[0]) == {"a": [[2, 0], [], [1]], "b": [[0], [], []]}
    assert users(files[1]) == users(files[0])
    assert files[0].catalogue.titles == ("One", "Two", "Three")
    assert files[0].dataset_name == "shops"


def test_a_party_that_can_t_be_made_a_client_is_one_line_and_leaves_nothing(
    party: Path, catalogue: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shop.fellrec"
    assert "no such" in refused(call("client", tmp_path / "nowhere", "--out", out))
    assert "unknown split 'half'" in refused(call("client", party, "--out", out, "--split", "half"))
    assert "at least 7" in refused(call("client", party, "--out", out, "--split", "last-5"))
    assert "needs .train.inter" in refused(call("client", party, "--out", out, "--split", "files"))
    assert "can't be printed" in refused(call("client", party, "--out", out, "--name", ""))
    assert "can't be written" in refused(call("client", party, "--out", party / "shop.inter" / "f"))
    (party / "shop.inter").write_text(HEADER + "a\tx\t1\na\tw\t2\n")
    line = refused(call("client", party, "--out", out, "--catalogue", catalogue))
    assert "shop.inter, line 3" in line and "'w'" in line
    assert not out.exists()


def test_a_recipe_s_data_are_divided_as_training_divides_them(toys: Toys, tmp_path: Path) -> None:
    config = toys.recipe()
    recipe = tmp_path / "toys.toml"
    recipe.write_text(config.to_toml())
    out = tmp_path / "new" / "parts"
    result = call("divide", recipe, "--out", out)
    assert result.exit_code == 0, result.output
    shares = share_data(config)
    assert sorted(shares.partition.names) == sorted(SHOPS)
    assert {path.name for path in out.iterdir()} == {f"{name}.fellrec" for name in SHOPS}
    lines = result.stdout.splitlines()
    for number, name in enumerate(shares.partition.names):
        own, file = shares.of(number), read_client_file(out / f"{name}.fellrec")
        assert file.split.users == own.users and file.split_kind == config.data.split
        assert file.split.train.values.tolist() == own.train.values.tolist()
        taken = sum(len(part.values) for part in (own.train, own.valid, own.test))
        counts = f"{len(own)} users, {taken} interactions"
        assert lines[number] == f"{name}: {counts}, {out / f'{name}.fellrec'}"
    assert lines[-1].startswith("go on: ")
    assert "exists already" in refused(call("divide", recipe, "--out", out))


def test_settings_decide_how_data_are_divided(toys: Toys, tmp_path: Path) -> None:
    recipe = tmp_path / "toys.toml"
    recipe.write_text(toys.recipe().to_toml())
    sets = ("--set", "clients.partition=random", "--set", "clients.count=2")
    assert call("divide", recipe, *sets, "--out", tmp_path / "two").exit_code == 0
    assert len(list((tmp_path / "two").iterdir())) == 2
    line = refused(call("divide", recipe, "--set", "data.source=nowhere", "--out", tmp_path / "no"))
    assert "no data set 'nowhere'" in line
    assert "unknown key" in refused(call("divide", recipe, "--set", "clients.no=1", "--out", "x"))
    assert "no recipe" in refused(call("divide", "nowhere", "--out", tmp_path / "no"))
    assert not (tmp_path / "no").exists()


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom fellrec.cli import app\n"
        "assert CliRunner().invoke(app, ['data', 'divide', '--help']).exit_code == 0\n"
        "print([name for name in ('torch', 'numpy', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

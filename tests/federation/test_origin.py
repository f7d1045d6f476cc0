"""Where a run came from: sessions noted as it goes, and a digest that sees code and not words."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from fellrec.errors import RunError, TrainingError
from fellrec.federation import origin
from fellrec.federation.observer import Observer, RoundRecord
from fellrec.federation.origin import code_digest, digest_of, sessions
from fellrec.federation.runs import train
from tests.toys import Toys


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a copy of the package's source that digests are made of."""
    copy = Path(shutil.copytree(origin._SOURCE, tmp_path / "fellrec"))
    monkeypatch.setattr(origin, "_SOURCE", copy)
    digest_of.cache_clear()
    yield copy
    digest_of.cache_clear()


def digests_after(file: Path, old: str, new: str) -> dict[str, str]:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    digest_of.cache_clear()
    return {name: code_digest(name) for name in origin._OWN}


def test_the_digest_sees_code_and_not_words(source: Path) -> None:
    before = {name: code_digest(name) for name in origin._OWN}
    assert len(set(before.values())) == 3
    client = source / "federation" / "client.py"
    assert digests_after(client, '"""One client', '"""A client') == before
    assert digests_after(client, "from __future__", "# a remark\n\nfrom __future__") == before
    assert (
        digests_after(source / "cli/__init__.py", "import sys", "import os\nimport sys") == before
    )
    after = digests_after(client, "local_epochs: int = 2", "local_epochs: int = 3")
    assert not set(after.values()) & set(before.values())


def test_the_digest_is_of_the_tree_and_not_of_what_a_version_of_python_adds_to_it() -> None:
    text = "def f(x, *, k=None):\n    return f'{x!r:>4}' if x else [None, ...]\n"
    tree = ast.parse(text)
    function: Any = tree.body[0]
    # As `ast` has them from 3.12 on, whatever this is.
    function._fields = (*ast.FunctionDef._fields, "type_params")
    function.type_params = []
    newer = origin._written(tree)
    assert newer == origin._written(ast.parse(text))
    assert newer == (
        "Module(body=[FunctionDef(name='f',args=arguments(args=[arg(arg='x')],"
        "kwonlyargs=[arg(arg='k')],kw_defaults=[None]),body=[Return(value=IfExp(test=Name("
        "id='x',ctx=Load()),body=JoinedStr(values=[FormattedValue(value=Name(id='x',ctx=Load()),"
        "conversion=114,format_spec=JoinedStr(values=['>4']))]),orelse=List(elts=[None,Ellipsis],"
        "ctx=Load())))])])"
    )


def test_the_digest_of_one_recommender_is_not_anothers(source: Path) -> None:
    before = {name: code_digest(name) for name in origin._OWN}
    after = digests_after(source / "models" / "hllm.py", "import torch", "import sys\nimport torch")
    assert {name for name in before if before[name] != after[name]} == {"hllm"}


def test_what_is_named_is_there() -> None:
    for names in origin._OWN.values():
        for name in names:
            assert (origin._SOURCE / "models" / f"{name}.py").is_file()
    for pattern in (*origin._MATTERS, *origin._NOT):
        assert list(origin._SOURCE.glob(pattern))


def test_a_run_notes_its_session(undisturbed: Path) -> None:
    (session,) = sessions(undisturbed)
    assert session.code == code_digest("hllm")
    assert session.seconds is not None and session.seconds > 0
    assert datetime.fromisoformat(session.began).utcoffset() is not None
    assert session.fellrec and session.python and session.torch


class Stop(Observer):
    def round_ends(self, record: RoundRecord) -> None:
        raise TrainingError("stopped by the test")


@pytest.mark.usefixtures("own_cache")
def test_a_resumed_run_has_two_sessions(toys: Toys, runs: Path) -> None:
    with pytest.raises(TrainingError, match="by the test"):
        train(toys.recipe(), runs / "run", observer=Stop())
    assert [session.seconds for session in sessions(runs / "run")] == [None]
    train(toys.recipe(), runs / "run", resume=True)
    first, second = sessions(runs / "run")
    assert first.seconds is None and second.seconds is not None


def test_damaged_files(tmp_path: Path) -> None:
    assert sessions(tmp_path) == []
    for text in ("", "[]", "{}", '{"sessions": [{}]}', '{"sessions": 3}', '{"sessions": [3]}'):
        (tmp_path / "origin.json").write_text(text)
        with pytest.raises(RunError, match=r"origin\.json"):
            sessions(tmp_path)

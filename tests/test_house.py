"""The house rules that a reader relies on: imports point down, nothing is unpickled, all is said.

Read from the syntax trees of the source files, so imports inside functions and under
``TYPE_CHECKING`` count as well.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "fellrec"
SOURCE = Path(__file__).parent.parent / "src" / PACKAGE
FILES = sorted(SOURCE.rglob("*.py"))

# part of the package -> what it may not import
OVER = ("serving", "results", "comparison", "report", "audit", "planning")
ABOVE = ("privacy", *OVER)
FORBIDDEN = {
    "data": ("split", "federation", "models", "balance", "evaluation", "peers", *ABOVE),
    "models": ("split", "federation", "balance", "evaluation", "peers", *ABOVE),
    "split": ("federation", "balance", "evaluation", "peers", *ABOVE),
    "evaluation": ("federation", "balance", "peers", *ABOVE),
    "federation": ("peers", *OVER),
    "peers": ("split", "federation", *ABOVE),
    "serving": ("results", "comparison", "report", "audit"),
    "results": ("comparison", "report", "audit"),
    "comparison": ("report", "audit"),
    "report": ("audit",),
    "audit": ("results", "comparison", "report", "peers", "planning"),
    "privacy": (
        *("split", "federation", "balance", "evaluation", "peers", "serving", "results"),
        *("comparison", "report", "audit", "planning"),
    ),
    "planning": ("results", "comparison", "report", "peers", "serving"),
    "report.charts": (
        *("data", "models", "split", "federation", "balance", "evaluation", "config", "serving"),
        *(
            "results",
            "comparison",
            "report.sections",
            "report.reading",
            "report.blocks",
            "report.frame",
        ),
    ),
    "split.remote": ("split.trunk",),
}
PICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield absolute names of all that is imported; "a.b" for ``from a import b``, b module or not.

    Args:
        tree: a module.
        package: the package it lies in, to which relative imports refer.

    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")
                above = above[: len(above) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def lies_in(name: str, part: str) -> bool:
    return f"{name}.".startswith(f"{part}.")


def wrong_imports(name: str, imported: list[str]) -> list[str]:
    """Return what the module of this name should not import."""
    wrong = []
    for other in imported:
        for part, below in FORBIDDEN.items():
            if lies_in(name, f"{PACKAGE}.{part}"):
                wrong += [other for layer in below if lies_in(other, f"{PACKAGE}.{layer}")]
        command = name == f"{PACKAGE}.__main__" or lies_in(name, f"{PACKAGE}.cli")
        if lies_in(other, f"{PACKAGE}.cli") and not command:
            wrong.append(other)
        if lies_in(other, "flwr") and not lies_in(name, f"{PACKAGE}.federation.flower"):
            wrong.append(other)
        if lies_in(name, f"{PACKAGE}.balance") and not (
            other.partition(".")[0] in {"torch", "numpy", *sys.stdlib_module_names}
            or lies_in(other, f"{PACKAGE}.errors")
            or lies_in(other, f"{PACKAGE}.balance")
        ):
            wrong.append(other)
    return wrong


def unpickling(tree: ast.AST, package: str) -> list[str]:
    """Return what could run code from a file: pickle's kin, ``torch.load``, numpy's and pandas'."""
    found = [name for name in imports(tree, package) if name.partition(".")[0] in PICKLERS]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called in ("torch.load", "load") and given.get("weights_only") != "True":
            found.append(f"{called} without weights_only=True")
        if called.endswith("read_pickle") or given.get("allow_pickle", "False") != "False":
            found.append(called)
    return found


def test_there_are_files_to_check() -> None:
    names = {module_name(path) for path in FILES}
    assert {"fellrec.errors", "fellrec.config", "fellrec.split.wire"} <= names


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_down(path: Path) -> None:
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    assert wrong_imports(name, list(imports(ast.parse(path.read_text()), package))) == []


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nothing_is_unpickled(path: Path) -> None:
    name = module_name(path)
    assert unpickling(ast.parse(path.read_text()), name.rpartition(".")[0]) == []


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize(
    ("name", "line", "wrong"),
    [
        ("fellrec.data.sources", "from fellrec.split import wire", True),
        ("fellrec.data.sources", "from fellrec import split", True),
        ("fellrec.data.sources", "from ..models import hllm", True),
        ("fellrec.data.sources", "from .interactions import Ragged", False),
        ("fellrec.models.hllm", "import fellrec.data.interactions", False),
        ("fellrec.models.hllm", "def f():\n    import fellrec.split.wire", True),
        ("fellrec.split.trunk", "from fellrec.models.cutting import cut", False),
        ("fellrec.split.trunk", "from fellrec.federation.client import Client", True),
        ("fellrec.split.remote", "from fellrec.split.trunk import TrunkServer", True),
        ("fellrec.split.remote", "from .trunk import TrunkServer", True),
        ("fellrec.split.remote", "from fellrec.split import trunk", True),
        ("fellrec.split.transport", "from fellrec.split.trunk import TrunkServer", False),
        ("fellrec.evaluation.ranking", "from fellrec.balance import mix", True),
        ("fellrec.balance.mixing", "import numpy as np, torch, math", False),
        ("fellrec.balance.mixing", "from fellrec.errors import ConfigError", False),
        ("fellrec.balance.mixing", "from fellrec.balance.heating import heating", False),
        ("fellrec.balance.mixing", "import scipy", True),
        ("fellrec.balance.mixing", "from fellrec.config import RunConfig", True),
        ("fellrec.federation.client", "import flwr", True),
        ("fellrec.federation.client", "from fellrec.privacy import Cover", False),
        ("fellrec.privacy.veil", "from fellrec.federation.client import Client", True),
        ("fellrec.models.hllm", "from fellrec.privacy import Veil", True),
        ("fellrec.federation.flower.app", "from flwr.app import Message", False),
        ("fellrec.federation.runs", "from fellrec.results import cells", True),
        ("fellrec.federation.runs", "from fellrec.serving.run import load_run", True),
        ("fellrec.serving.run", "from fellrec.results.cells import read", True),
        ("fellrec.results.keeping", "from fellrec.federation.runs import finished", False),
        ("fellrec.federation.runs", "from fellrec.peers import run_peer", True),
        ("fellrec.models.hllm", "from fellrec.peers.sasrec import SasRec", True),
        ("fellrec.balance.mixing", "from fellrec.peers import run_peer", True),
        ("fellrec.peers.training", "from fellrec.models.batching import like_lengths", False),
        ("fellrec.peers.federated", "from fellrec.balance import combine", False),
        ("fellrec.peers.running", "from fellrec.federation.shares import share_data", True),
        ("fellrec.peers.running", "from fellrec.cli import app", True),
        ("fellrec.results.tables", "from fellrec.report import write_report", True),
        ("fellrec.results.plan", "from fellrec.comparison.plan import Comparison", True),
        ("fellrec.comparison.writing", "from fellrec.report import write_comparison", True),
        ("fellrec.comparison.table", "from fellrec.results.cells import Cell", False),
        ("fellrec.report.comparison_page", "from fellrec.comparison.table import Row", False),
        ("fellrec.report.charts.lines", "from fellrec.comparison.course import Course", True),
        ("fellrec.report.sections.cost", "from fellrec.split.ledger import LedgerRow", False),
        ("fellrec.report.charts.heat", "from fellrec.report.charts.svg import text", False),
        ("fellrec.report.charts.heat", "from fellrec.report.reading import read_run", True),
        ("fellrec.report.charts.bars", "from fellrec.split.ledger import Ledger", True),
        ("fellrec.serving.run", "from fellrec.cli import app", True),
        ("fellrec.cli.data_commands", "from fellrec.cli.shared import quiet", False),
    ],
)
def test_the_import_check_sees_what_it_should(name: str, line: str, wrong: bool) -> None:
    found = wrong_imports(name, list(imports(ast.parse(line), name.rpartition(".")[0])))
    assert bool(found) is wrong


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("import pickle", True),
        ("from joblib import load", True),
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=True)", False),
        ("numpy.load(path, allow_pickle=True)", True),
        ("np.load(path)", False),
        ("pd.read_pickle(path)", True),
        ("json.load(file)", False),
        ("safetensors.torch.load_file(path)", False),
    ],
)
def test_the_unpickling_check_sees_what_it_should(line: str, wrong: bool) -> None:
    assert bool(unpickling(ast.parse(line), "fellrec")) is wrong

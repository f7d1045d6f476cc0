"""FELLRec: federated, split, balanced fine-tuning of one language model as a recommender.

Public names: `RunConfig`, `RunResult`, `export_adapter`, `load_dataset`, `load_run`, `train`; in
`fellrec.split` `cut`, in `fellrec.balance` the equations, in `fellrec.errors` what is raised. They
are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fellrec.config import RunConfig
    from fellrec.data.sources import load_dataset
    from fellrec.federation.runs import RunResult, train
    from fellrec.serving.export import export_adapter
    from fellrec.serving.run import load_run

__version__ = "0.1.0"

__all__ = [
    "RunConfig",
    "RunResult",
    "export_adapter",
    "load_dataset",
    "load_run",
    "train",
]

_HOMES = {
    "RunConfig": "fellrec.config",
    "RunResult": "fellrec.federation.runs",
    "export_adapter": "fellrec.serving.export",
    "load_dataset": "fellrec.data.sources",
    "load_run": "fellrec.serving.run",
    "train": "fellrec.federation.runs",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fellrec' has no attribute {name!r}")

"""Everything FELLRec raises on purpose.

    FellrecError
    ├── ConfigError       a recipe or an option: unknown key, wrong type, impossible value
    ├── DataError         a data file or what it says: header, line, ids, too few interactions
    ├── SourceError       data or weights that could not be brought, or whose checksum is wrong
    ├── ModelError        a base model that can't be cut, or weights that do not fit it
    ├── RunError          a run directory: exists already, missing, incomplete, of another recipe
    ├── TrainingError     a client's training that diverged
    └── WireError         a frame that is refused: version, kind, shape, size, order, values

Each message is one line that says what is wrong, where, and what to do. The command line prints it
and exits with code 2; a traceback therefore always means a bug.
"""

from __future__ import annotations


class FellrecError(Exception):
    """Base class: catch this to catch all that FELLRec raises on purpose."""


class ConfigError(FellrecError):
    """A recipe or an option can't be used as it stands."""


class DataError(FellrecError):
    """A data file can't be read, or what it says contradicts itself."""


class SourceError(FellrecError):
    """Data or weights could not be brought, or arrived damaged."""


class ModelError(FellrecError):
    """A base model can't be cut or loaded as asked."""


class RunError(FellrecError):
    """A run directory can't be used as asked."""


class TrainingError(FellrecError):
    """A client's training diverged."""


class WireError(FellrecError):
    """A frame was refused."""

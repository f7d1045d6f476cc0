"""Which cut, codec and batch fit a client's machine, its line and how much may be read back."""

from fellrec.planning.choices import Choice, Plan, plan
from fellrec.planning.limits import Limits, bytes_of

__all__ = ["Choice", "Limits", "Plan", "bytes_of", "plan"]

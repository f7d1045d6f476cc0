"""What an honest but curious server learns from a finished run's clients, measured by attacking.

Each attacker's module says what it knows. All of them know the base's public weights, the catalogue
and what crossed; none knows a client's private tensors.
"""

from fellrec.audit.auditing import audit
from fellrec.audit.findings import Audit

__all__ = ["Audit", "audit"]

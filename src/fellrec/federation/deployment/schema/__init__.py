"""What crosses: the one list of every field that parties of a deployment send each other.

`frames`, `service` and `orders` declare it, `explain` holds recorded bytes against it, `table`
prints it for docs/crossing.md. METHOD, section 2: tokens, item ids, titles, labels, logits and
users' scores have no field here.
"""

from __future__ import annotations

from fellrec.federation.deployment.schema.explain import Explainer
from fellrec.federation.deployment.schema.folder import explain_folder
from fellrec.federation.deployment.schema.forms import UndeclaredError
from fellrec.federation.deployment.schema.pieces import Explained, Part

__all__ = ["Explained", "Explainer", "Part", "UndeclaredError", "explain_folder"]

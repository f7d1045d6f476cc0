"""What a client may do to what it sends, and what that is worth."""

from fellrec.privacy.accounting import epsilon, histories_epsilon
from fellrec.privacy.veil import Veil, VeiledTrunk, typical_length

__all__ = ["Veil", "VeiledTrunk", "epsilon", "histories_epsilon", "typical_length"]

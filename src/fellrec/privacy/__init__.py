"""What a client may do to what it sends, and what that is worth.

`accounting` is imported by itself: the accountant takes a moment to load.
"""

from fellrec.privacy.cover import Cover
from fellrec.privacy.draws import Draws
from fellrec.privacy.public import activations, made_up, public_bound, typical_length
from fellrec.privacy.secret import Secret, start_secretly
from fellrec.privacy.shuffle import ShuffledTrunk, order_is_free
from fellrec.privacy.user_level import PrivateSum, UserLevel, drawn
from fellrec.privacy.veil import Veil, VeiledTrunk

__all__ = [
    "Cover",
    "Draws",
    "PrivateSum",
    "Secret",
    "ShuffledTrunk",
    "UserLevel",
    "Veil",
    "VeiledTrunk",
    "activations",
    "drawn",
    "made_up",
    "order_is_free",
    "public_bound",
    "start_secretly",
    "typical_length",
]

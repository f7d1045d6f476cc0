"""The private side: interactions, catalogues, splits, partitions, and where they come from.

Nothing here imports another part of the package except its errors: what a client holds about its
users stays on this side of every import.
"""

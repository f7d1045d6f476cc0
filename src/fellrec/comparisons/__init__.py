"""Comparisons a person can start by name: ``fellrec compare compare-ml100k``."""

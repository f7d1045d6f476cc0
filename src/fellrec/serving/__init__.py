"""Recommendations from a finished run, and its adapters for use elsewhere."""

"""Complete runs a person can start by name: ``fellrec train demo``."""

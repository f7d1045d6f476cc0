"""The sections of a run's page: each a function from a finished run to its blocks."""

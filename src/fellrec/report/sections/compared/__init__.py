"""The sections of a comparison's page: each a function from a `View` of a table to its blocks."""

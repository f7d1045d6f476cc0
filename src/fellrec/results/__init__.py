"""Finished results, kept small: what a table of them shows is computed from here alone.

cells.py     a folder per result: resolved recipe, summary, per-user scores, where it came from
keeping.py   from a finished run to a cell, with popularity on its data beside it
plan.py      which runs a table needs, which of them are there, and the command that makes each
vouching.py   make cells anew to show that today's code gives the same; vouched.py: what was shown
pairing.py   differences between results over the users that both scored
tables.py    the page in Markdown
"""

from __future__ import annotations

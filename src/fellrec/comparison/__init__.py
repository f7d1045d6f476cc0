"""Strategies side by side, on the same users, with how sure each difference is.

plan.py        from a file to cells, each known by what it asks for; checks.py: its mistakes
outcomes.py    which cells stand, which failed; alike.py: which may stand in one table; states.py:
               by which code they were made
running.py     make what is lacking; worker.py: one cell, in a process that ends with its
               parent (parent.py)
statistics.py  one bootstrap of users behind every interval
table.py       from cells to figures; course.py: from logged rounds
terminal.py    tables and progress in the terminal; writing.py: CSV and Markdown
"""

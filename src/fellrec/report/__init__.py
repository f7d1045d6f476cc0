"""One self-contained HTML page from a finished run, or from a comparison of many.

`write_report` and `write_comparison` are all that most need. The parts are for other pages too:
`charts` draws, `blocks` says what a page is made of, `frame` writes it; `reading` and `sections`
know about runs, `sections.compared` about comparisons.
"""

from fellrec.report.comparison_page import write_comparison
from fellrec.report.run_page import write_report
from fellrec.report.sections.balance import Reference

__all__ = ["Reference", "write_comparison", "write_report"]

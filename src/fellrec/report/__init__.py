"""One self-contained HTML page from a finished run.

`write_report` is all that most need. The parts are for other pages too: `charts` draws, `blocks`
says what a page is made of, `frame` writes it; `reading` and `sections` know about runs.
"""

from fellrec.report.run_page import write_report
from fellrec.report.sections.balance import Reference

__all__ = ["Reference", "write_report"]

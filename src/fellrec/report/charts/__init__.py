"""Charts as inline SVG: small functions from numbers to an element, knowing nothing of runs.

Colours are classes that the page's style sheet defines for light and dark; besides its colour every
series has a marker, a dash or a pattern of its own. Each chart has a title and a description in
words; its numbers stand in a table beside it (`fellrec.report.blocks.Figure`).
"""

from fellrec.report.charts.bars import Bar, bar_chart, bar_legend
from fellrec.report.charts.heat import Grid, Shade, heat_legend, heat_map
from fellrec.report.charts.intervals import Mark, Row, interval_chart, interval_legend
from fellrec.report.charts.lines import Line, LineFrame, line_chart, line_legend
from fellrec.report.charts.svg import Words

__all__ = [
    "Bar",
    "Grid",
    "Line",
    "LineFrame",
    "Mark",
    "Row",
    "Shade",
    "Words",
    "bar_chart",
    "bar_legend",
    "heat_legend",
    "heat_map",
    "interval_chart",
    "interval_legend",
    "line_chart",
    "line_legend",
]

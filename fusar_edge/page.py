"""Pieces of a report: one HTML file that opens offline, with tables, and pictures as inline SVG made by matplotlib."""

from __future__ import annotations

import html
import io
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

Row = Sequence[str]
INK, SECOND, GRID = "#1d3557", "#c1440e", "#d9dde3"

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1b1f24;background:#fff;margin:2rem auto;max-width:62rem;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2.2rem 0 .4rem;border-bottom:1px solid #d9dde3}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.86rem;margin:.6rem 0}
th,td{padding:.18rem .7rem .18rem 0;text-align:right;vertical-align:top}th:first-child,td:first-child{text-align:left}
.text td,.text th{text-align:left}
th{font-weight:600;border-bottom:1px solid #8a939e}tr+tr td{border-top:1px solid #eceff2}
.scroll{overflow-x:auto}.good,.bad{padding:.5rem .9rem;border-left:4px solid;margin:1rem 0}
.good{border-color:#2a7d4f;background:#eef7f1}.bad{border-color:#c1440e;background:#fdf2ec}
.note{color:#4b5563;font-size:.88rem}svg{max-width:100%;height:auto}code{font-size:.86em;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;font-size:.88rem}
dt{color:#4b5563}dd{margin:0;overflow-wrap:anywhere}
"""


def page(title: str, parts: Iterable[str]) -> str:
    """The whole file; `title` is text, `parts` are HTML, empty ones left out."""
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>'
    view = '<meta name="viewport" content="width=device-width,initial-scale=1">'
    return f"{head}{view}<style>{STYLE}</style></head><body>\n" + "\n".join(filter(None, parts)) + "\n</body></html>\n"


def note(text: str) -> str:
    return f'<p class="note">{escaped(text)}</p>'


def section(title: str, *pieces: str) -> str:
    return f"<section><h2>{escaped(title)}</h2>{''.join(pieces)}</section>"


def table(head: Row, rows: Iterable[Row], *, text: bool = False) -> str:
    """`text`: columns of words, to the left; else all but the first are numbers."""

    def line(cells: Row, tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escaped(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    words = ' class="text"' if text else ""
    return f'<div class="scroll"><table{words}>{line(head, "th")}{body}</table></div>'


def escaped(text: str) -> str:
    return html.escape(str(text))


def figure_axes(height: float = 3.2) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def svg(figure: Any, title: str) -> str:
    """The bare <svg> element, with a title for who cannot see it. Text stays text."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Names inside one document must differ from picture to picture.
    mark = f"p{zlib.crc32(title.encode()):08x}"
    text = re.sub(r'id="([^"]+)"', rf'id="{mark}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{mark}-", text)
    return re.sub(r"<svg ", f'<svg role="img" aria-label="{title}" ', text, count=1)

"""A report as one page of HTML that needs nothing else."""

from __future__ import annotations

from html import escape

from benchmarks.cost.blocks import PIECES, TITLE, Block, Heading, Notes, Plots, Table
from benchmarks.cost.document import document
from benchmarks.cost.report import Report
from sovit.plot.page import page


def to_html(report: Report) -> str:
    """One page that loads nothing: styles and plots are in it, and there is no script."""
    machines = " and ".join(machine.name for machine in report.machines)
    return page(
        title=f"{TITLE}: {machines}",
        heading=TITLE,
        of=f"{machines}, measured {_dates(report)} with sovit {_versions(report)}",
        flaws=[f"{flaw}." for flaw in report.flaws],
        body="\n".join(_html_block(block) for block in document(report)),
    )


def _html_block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Plots(names, svgs, caption, reading):
            kind = "pair" if len(svgs) > 1 else "wide"
            plots = f'{names}<div class="{kind}">{"".join(svgs)}</div>'
            return f"<figure>{plots}<figcaption>{escape(f'{reading} {caption}'.strip())}</figcaption></figure>"
        case Notes(notes):
            return f"<ul>{''.join(f'<li>{_linked(note)}</li>' for note in notes)}</ul>"
        case Table():
            return _html_table(block)
        case str():
            return f"<p>{_linked(block)}</p>"


def _html_table(table: Table) -> str:
    head = "".join(f'<th scope="col"{_numeric(numeric)}>{escape(title)}</th>' for title, numeric in table.columns)
    rows, last = [], ""
    for row in table.rows:
        cells = []
        for cell, (_, numeric) in zip(row, table.columns, strict=True):
            text = f'<a href="{escape(cell.url)}">{escape(cell.text)}</a>' if cell.url else escape(cell.text)
            small = f"<small>{escape(cell.small)}</small>" if cell.small else ""
            cells.append(f"<td{_numeric(numeric)}>{text}{small}</td>")
        # Rows that begin alike belong together, such as those of one metric.
        same = ' class="same"' if row[0].text == last else ""
        rows.append(f"<tr{same}>{''.join(cells)}</tr>")
        last = row[0].text
    lines = "\n".join(rows)
    return (
        f'<div class="table"><table><caption>{escape(table.caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody></table></div>"
    )


def _numeric(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def _linked(text: str) -> str:
    """Text with its addresses as links, and what stands between backticks as code."""
    found = []
    for part in PIECES.split(text):
        shown = escape(part.strip("`"))
        if part.startswith(("https://", "http://")):
            shown = f'<a href="{shown}">{shown}</a>'
        elif part.startswith("`"):
            shown = f"<code>{shown}</code>"
        found.append(shown)
    return "".join(found)


def _dates(report: Report) -> str:
    days = sorted({one.conditions.time[:10] for one in report.files})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _versions(report: Report) -> str:
    return ", ".join(sorted({one.conditions.sovit for one in report.files}))

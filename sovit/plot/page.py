"""A page of HTML that loads nothing: styles and plots are in it, and there is no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from sovit.plot.svg import STYLE


def page(*, title: str, heading: str, of: str, flaws: Sequence[str], body: str) -> str:
    """The whole page. `of` says in a line what it is about, `flaws` are sentences to be read first; `body` is HTML."""
    warned = "".join(f'<p class="flaw"><strong>Read with care.</strong> {escape(flaw)}</p>' for flaw in flaws)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{_STYLE}{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(heading)}</h1>
<p class="of">{escape(of)}</p>
{warned}
</header>
<main>
{body}
</main>
</body>
</html>
"""


_SERIES_ON_LIGHT: Final = """
    --series-0: #2f5bd0; --series-1: #c2570c; --series-2: #1d7f4b;
    --series-3: #9055b5; --series-4: #b0305c; --series-5: #6b7280;"""

_STYLE: Final = f"""
:root {{
  color-scheme: light dark;
  --ground: #f5f6f8; --surface: #ffffff; --sunken: #eef0f4; --line: #e1e4ea; --line-strong: #868e9c;
  --text: #191c22; --muted: #565e6c; --accent: #2f5bd0; --bad: #a8261c; --bad-soft: #fdf0ee; --bad-line: #efc5c0;
  {_SERIES_ON_LIGHT}
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --ground: #101216; --surface: #191c22; --sunken: #23272f; --line: #2c313b; --line-strong: #717b8c;
    --text: #e9ebef; --muted: #a2abba; --accent: #8fb0ff; --bad: #ffaea5; --bad-soft: #2c1b1b; --bad-line: #5c302d;
    --series-0: #7c9ff5; --series-1: #f0954a; --series-2: #5cc98f;
    --series-3: #c391e6; --series-4: #ef7d9f; --series-5: #a2abba;
  }}
}}
*, *::before, *::after {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 74rem; background: var(--ground); color: var(--text); }}
h1 {{ margin: 0; font-size: 1.75rem; line-height: 1.25; letter-spacing: -.015em; }}
h2 {{ margin: 2.75rem 0 .75rem; font-size: 1.25rem; line-height: 1.3; letter-spacing: -.01em; }}
h3 {{ margin: 1.75rem 0 .6rem; font-size: 1rem; }}
p, ul {{ margin: .6rem 0; max-width: 46rem; }}
ul {{ padding-left: 1.15rem; }}
li {{ margin: .3rem 0; overflow-wrap: anywhere; }}
code {{ font: .9em ui-monospace, "SF Mono", Menlo, Consolas, monospace; white-space: nowrap; }}
a {{ color: var(--accent); text-underline-offset: .2em; }}
.of {{ margin: .35rem 0 0; color: var(--muted); }}
.flaw {{
  margin: .9rem 0 0; padding: .6rem .9rem; max-width: none; color: var(--bad);
  background: var(--bad-soft); border: 1px solid var(--bad-line); border-radius: 8px;
}}
.table, figure {{ background: var(--surface); border: 1px solid var(--line); border-radius: 12px; }}
.table {{ margin: 1rem 0; overflow-x: auto; }}
table {{ width: 100%; border-collapse: collapse; font-size: .8125rem; line-height: 1.4; }}
caption, figcaption {{
  padding: .75rem 1rem; color: var(--muted); font-size: .8125rem; line-height: 1.45; text-align: left;
}}
th, td {{ padding: .45rem .6rem; border-top: 1px solid var(--line); text-align: left; vertical-align: baseline; }}
th {{ color: var(--muted); font-weight: 550; vertical-align: bottom; }}
th:first-child, td:first-child {{ padding-left: 1rem; }}
th:last-child, td:last-child {{ padding-right: 1rem; }}
.same td {{ border-top-color: transparent; }}
.same td:first-child {{ color: transparent; }}
main > h2:first-child + p {{ font-size: 1.2rem; font-weight: 550; line-height: 1.4; max-width: 54rem; }}
td {{ overflow-wrap: break-word; }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
th.number {{ white-space: normal; }}
small {{ display: block; color: var(--muted); font-size: .6875rem; }}
figure {{ margin: 1rem 0; padding: 1rem; }}
figcaption {{ padding: .75rem 0 0; }}
.pair {{ display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; }}
caption {{ max-width: calc(100vw - 5rem); }}
@media (max-width: 50rem) {{ .pair {{ grid-template-columns: 1fr; }} }}
@media print {{
  @page {{ size: A4; margin: 13mm; }}
  :root {{
    color-scheme: light;
    --ground: #fff; --surface: #fff; --sunken: #fff; --line: #d4d8df; --line-strong: #777; --text: #000; --muted: #444;
    --accent: #000; --bad: #8c1c13; --bad-soft: #fff; --bad-line: #8c1c13;
    {_SERIES_ON_LIGHT}
    font-size: 10.5pt;
    print-color-adjust: exact;
  }}
  body {{ padding: 0; max-width: none; }}
  h2, h3 {{ break-after: avoid; }}
  figure, tr, li {{ break-inside: avoid; }}
  figure, .table {{ border-color: #bbb; border-radius: 0; }}
  .table {{ overflow: visible; border: 0; }}
  table {{ font-size: 7.5pt; }}
  th, td {{ padding: .2rem .25rem; }}
  .number small {{ white-space: normal; }}
  small {{ font-size: 6.5pt; }}
  caption {{ max-width: none; }}
  caption, figcaption {{ padding-inline: 0; font-size: 7.5pt; }}
  th:first-child, td:first-child {{ padding-left: 0; }}
  th:last-child, td:last-child {{ padding-right: 0; }}
  thead {{ display: table-header-group; }}
  p, ul {{ max-width: none; }}
  .pair {{ grid-template-columns: 1fr 1fr; gap: .75rem; }}
}}
"""

"""What an image costs: measured rows joined with prices and published accuracies, said in blocks.

`page.py` writes them as HTML, `markdown.py` as Markdown. Nothing depends on when or where the report is made:
the same input gives the same bytes.
"""

from __future__ import annotations

from benchmarks.cost.blocks import Block, Heading
from benchmarks.cost.claim_section import claim_blocks
from benchmarks.cost.front_section import front_blocks
from benchmarks.cost.machine_section import machine_blocks
from benchmarks.cost.method_section import conditions_table, sources_and_method
from benchmarks.cost.report import Report, series_of_report


def document(report: Report) -> list[Block]:
    """Everything below the title, in order."""
    blocks = claim_blocks(report.claims)
    series = series_of_report(report)
    for index, machine in enumerate(report.machines):
        blocks += machine_blocks(machine, series, f"m{index}")
    for index, machine in enumerate(report.machines):
        blocks += front_blocks(machine, [one for one in report.fronts if one.machine == machine.name], report, index)
    return [*blocks, *sources_and_method(report), Heading("Conditions"), conditions_table(report.files)]

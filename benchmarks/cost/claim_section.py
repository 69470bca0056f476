"""The report's answer to the paper's claim about SoViT-400m/14 and ViT-g/14."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from benchmarks.cost.blocks import Block, Cell, Heading, Table
from benchmarks.cost.naming import (
    in_words,
    once,
    percent,
    spread,
)
from benchmarks.cost.pricing import AGAINST, CLAIMED, Claim, ClaimVerdict
from benchmarks.words import number, pixels


def claim_blocks(claims: Sequence[Claim]) -> list[Block]:
    """What was found about the paper's claim, or that it was not measured."""
    heading = Heading("SoViT-400m/14 against ViT-g/14")
    if not claims:
        return [
            heading,
            "The paper's claim, less than half of ViT-g/14's inference cost near its accuracy, was not measured here: "
            f"no machine has rows of both {CLAIMED} and {AGAINST} with the same image size, runtime, precision, batch "
            "and threads.",
        ]
    costs = "An image through SoViT-400m/14 costs"
    if len(claims) == 1:
        found = f"{costs} {spread(claims[0].share)} times what it costs through ViT-g/14: {claims[0].verdict}."
    else:
        low, high = min(claim.share.value for claim in claims), max(claim.share.value for claim in claims)
        found = (
            f"{costs} {number(low)} to {number(high)} times what it costs through ViT-g/14: "
            f"{_verdicts([claim.verdict for claim in claims])}."
        )
    accuracies = once(
        f"At {pixels(claim.row.image_size)} the paper publishes "
        + ", ".join(
            f"{percent(ours)} against {percent(theirs)} % ({title})" for title, ours, theirs in claim.accuracies
        )
        + "."
        for claim in claims
        if claim.accuracies
    )
    table = Table(
        "What SoViT-400m/14 costs, as a share of what ViT-g/14 costs in the same conditions. On one machine the price "
        "cancels out. Passes are those in which both took turns: the share is the median of their quotients; without a "
        "number there were too few, and the interval is that of two intervals.",
        (
            ("machine", False),
            ("conditions", False),
            ("cost", True),
            ("passes", True),
            ("", False),
            ("FLOPs", True),
        ),
        [
            [
                Cell(claim.machine),
                Cell(str(claim.row).partition(" at ")[2]),
                in_words(claim.share),
                Cell(str(claim.paired or "")),
                Cell(claim.verdict),
                Cell(number(claim.flops)),
            ]
            for claim in claims
        ],
    )
    return [
        heading,
        found,
        " ".join([*accuracies, "The paper itself counts FLOPs: 1374 of 3208 GFLOPs at 518 px, 0.43 (table 1)."]),
        table,
    ]


def _verdicts(verdicts: Sequence[ClaimVerdict]) -> str:
    """How many say what, the most favourable first."""
    counts = [(verdicts.count(verdict), verdict) for verdict in get_args(ClaimVerdict) if verdict in verdicts]
    if len(counts) == 1:
        every = "both" if len(verdicts) == 2 else f"all {len(verdicts)}"
        return f"{counts[0][1]} in {every} pairings"
    return ", ".join(f"in {count} of {len(verdicts)} pairings {verdict}" for count, verdict in counts)

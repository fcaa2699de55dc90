"""The figures of a race: ratios of interleaved times, and tables of them as text and Markdown."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bench.peers import OURS, PEERS
from fewstep.training.cost.arithmetic import product_flops
from fewstep.training.cost.compiled import collectives

MISSING = "-"


class Ratio(NamedTuple):
    """Ours over theirs: the median of the rounds' ratios, and the smallest and largest of them."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


class Cost(NamedTuple):
    """What a compiled program needs on each device; None where a peer does not say.

    flops: of the matrix products. temporary: bytes beside arguments and results. donated: share of
    the state whose memory is used again; None without a state. exchanged: collectives of a step on
    several devices, (number, bytes).
    """

    flops: int | None = None
    temporary: int | None = None
    donated: float | None = None
    exchanged: tuple[int, int] | None = None


class Result(NamedTuple):
    """One peer's figures of one kind of work. times: CPU seconds of one run, by round."""

    work: str
    peer: str
    times: Sequence[float]
    cost: Cost


class Start(NamedTuple):
    """CPU seconds from the start of a peer's process to the end of its first run.

    cold: without compiled programs of an earlier process. warm: with them.
    """

    work: str
    peer: str
    cold: float
    warm: float


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """The ratio of times that were measured in turn. Raises ValueError for unequal numbers."""
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def read_cost(reply: Mapping[str, Any], split: Mapping[str, Any] | None = None) -> Cost:
    """The cost that a peer reported, and that of its program for several devices, if it has one."""
    if "hlo" not in reply:
        return Cost(flops=reply.get("flops"))
    found = collectives(split["hlo"]) if split else None
    return Cost(
        product_flops(reply["hlo"]),
        reply["temporary"],
        reply["donated"] / reply["state"] if reply["state"] else None,
        None if found is None else (sum(c.count for c in found), sum(c.bytes for c in found)),
    )


def time_rows(results: Sequence[Result]) -> list[list[str]]:
    """A row for each peer and work: both medians in ms, their ratio, its range and the goal."""
    ours = {result.work: result for result in results if result.peer == OURS}
    rows = [["work", "peer", "Fewstep, ms", "peer, ms", "Fewstep / peer (range)", "goal"]]
    for theirs in results:
        if theirs.peer == OURS:
            continue
        our, peer = ours[theirs.work], PEERS[theirs.peer.split(":")[0]]
        found = ratio(our.times, theirs.times)
        goal = MISSING
        if peer.goal is not None:
            met = "met" if round(found.median, 2) <= peer.goal else "missed"
            goal = f"{peer.goal:.2f}, {met}"
        medians = [f"{1e3 * statistics.median(one.times):.1f}" for one in (our, theirs)]
        rows.append([theirs.work, title(theirs.peer), *medians, str(found), goal])
    return rows


def program_rows(results: Sequence[Result]) -> list[list[str]]:
    """A row for each work and peer, ours included: what its program needs."""
    rows = [["work", "program", "GFLOPs", "temporary, MiB", "donated", "collectives"]]
    for work, peer, _, cost in results:
        exchanged = MISSING
        if cost.exchanged is not None:
            exchanged = f"{cost.exchanged[0]}: {cost.exchanged[1] / 2**20:.2f} MiB"
        figures = [
            MISSING if cost.flops is None else f"{cost.flops / 1e9:.3f}",
            MISSING if cost.temporary is None else f"{cost.temporary / 2**20:.1f}",
            MISSING if cost.donated is None else f"{cost.donated:.0%}",
            exchanged,
        ]
        rows.append([work, title(peer), *figures])
    return rows


def start_rows(starts: Sequence[Start]) -> list[list[str]]:
    """A row for each peer: its CPU seconds to the end of the first run."""
    rows = [["work", "program", "cold, CPU s", "warm, CPU s"]]
    for work, peer, cold, warm in starts:
        rows.append([work, title(peer), f"{cold:.1f}", f"{warm:.1f}"])
    return rows


def title(name: str) -> str:
    """How tables name a peer; ours in another environment is told from ours by its colon."""
    peer, _, where = name.partition(":")
    return PEERS[peer].title + (f" ({where})" if where else "")


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns; numbers stand on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(align(cells, widths, index)).rstrip() for index, cells in enumerate(rows)]
    return "\n".join(lines)


def align(cells: Iterable[str], widths: Sequence[int], index: int) -> list[str]:
    """The cells of a row, padded: the first two columns are names, the others figures."""
    return [
        cell.ljust(width) if column < 2 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """The same table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])

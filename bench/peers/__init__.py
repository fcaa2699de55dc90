"""Who takes part in a race (bench/race.py): one entry and one file each.

A peer's file calls `bench.racer.serve` with a function that prepares the work of a spec. The file
imports only `bench.racer` and what its environment has. A new peer is one file and one entry.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

OURS = "fewstep"


class Peer(NamedTuple):
    """A package, by how it takes part.

    module: run as `PYTHON -m MODULE`. package: what PYTHON must be able to import. methods: those
    whose training step it has; all peers sample. fields: added to every spec. goal: the most CPU
    time that ours may take, relative to its; None without a goal.
    """

    title: str
    module: str
    package: str
    methods: tuple[str, ...]
    fields: Mapping[str, Any] = {}
    goal: float | None = None


TORCH = Peer("PyTorch", "bench.peers.pytorch", "torch", ("flow_matching",), {"compiled": False})
PEERS = {
    OURS: Peer(
        "Fewstep", "bench.peers.ours", "jax", ("flow_matching", "shortcut", "mean_flow", "sct")
    ),
    "torch": TORCH,
    "torch_compile": TORCH._replace(title="torch.compile", fields={"compiled": True}),
    "dew": Peer("Dew", "bench.peers.dewml", "dew", ("flow_matching", "shortcut"), goal=1.0),
    "shortcut_models": Peer(
        "Frans et al.",
        "bench.peers.shortcut_models",
        "targets_shortcut",
        ("flow_matching", "shortcut"),
        goal=1.0,
    ),
    "meanflow": Peer("Geng et al.", "bench.peers.meanflow", "meanflow", ("mean_flow",), goal=1.0),
}

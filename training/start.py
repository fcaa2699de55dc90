"""Starts a new run from the networks of another one: --from=RUN[@STEP].

* A player starts from the player of its name in the other run, with the moments of its optimizer if
  both use the same one. The player that samples starts from the network that samples there, if that
  run has no player of its name. Other players start as without --from.
* A follower of a player that starts so starts from the follower of its name there, if there is one,
  else as a copy.
* Parameters that the other network lacks, or has in another shape, start fresh. If the second time
  or the guidance scale is a new input, it has no effect at first.

Steps, order of the data and learning rates are those of a new run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.models.conditioning import silent_outputs
from fewstep.objectives.base import Objective
from fewstep.training.compiled_step import abstract_state
from fewstep.training.experiment import Experiment, optimizer_fields, rebuild
from fewstep.training.location import parse_location
from fewstep.training.optimizer import COUNT, moments_of
from fewstep.training.state import MOMENTS, NETWORKS, START
from fewstep.training.step import root_player
from fewstep.training.storage import restore, workdir
from fewstep.training.storage.checkpoint import OPTIMIZER, named_trees
from fewstep.training.storage.reasons import MEANING
from fewstep.training.storage.train_state import TrainState
from fewstep.training.teacher import shared_fields
from fewstep.training.trees import common_names, fitting_leaves, leaves_by_path

LEAST_SHARE = 0.5  # of a network's numbers that must fit


class Origin(NamedTuple):
    """The run to start from.

    given: RUN[@STEP]. config: its record, all fields. trees: shapes of all that a checkpoint has,
    by name. sources: own player or follower -> the network there. optimizers: the players whose
    moments are taken.
    """

    given: str
    folder: Path
    step: int
    config: ConfigDict
    trees: Mapping[str, Any]
    sources: Mapping[str, str]
    optimizers: Sequence[str]

    @property
    def run(self) -> str:
        """RUN@STEP."""
        return f"{self.folder}@{self.step}"


def find_origin(
    given: str, config: ConfigDict, experiment: Experiment, mesh: Mesh, run: Path | None = None
) -> Origin:
    """The run that --from names, for a new one of this config in the folder `run`.

    Reads no network. Raises ValueError if the new run cannot start from it.
    """
    folder, step = parse_location(given)
    if not workdir.is_run(folder):
        raise ValueError(
            f"--from={given}: {folder} is no run; name the folder of one, as in --from=runs/digits "
            "or --from=runs/digits@2000"
        )
    if run is not None and folder.resolve() == run.resolve():
        raise ValueError(f"--from={given} is the run itself; choose another --workdir")
    # That run may still be training, so all processes use the step that process 0 sees.
    step = int(multihost_utils.broadcast_one_to_all(np.int32(restore.saved_step(folder, step))))
    recorded = workdir.load_config(folder, step)
    check_meaning(given, recorded, config)
    other = rebuild(recorded, f"--from={given}")
    unstarted = other.objective._replace(init_from={})
    trees = named_trees(abstract_state(unstarted, other.optimizers, recorded.seed, {}, mesh))
    sources = choose_sources(experiment.objective, other)
    optimizers = [
        name
        for name in experiment.objective.players
        if name == sources.get(name)
        and name in other.objective.players
        and optimizer_fields(recorded, name)["name"] == optimizer_fields(config, name)["name"]
    ]
    return Origin(given, folder, step, recorded, trees, sources, optimizers)


def check_meaning(given: str, recorded: ConfigDict, config: ConfigDict) -> None:
    """Raises ValueError if the output of the other run's network would mean something else here."""
    there, here = shared_fields(recorded), shared_fields(config)
    found = [
        f"{name} ({there.get(name)} there, {here.get(name)} here)"
        for name in sorted(there.keys() | here.keys())
        if name.startswith(MEANING) and there.get(name) != here.get(name)
    ]
    if found:
        raise ValueError(
            f"--from={given} has another model: {'; '.join(found)}. Its network would compute "
            "something else here; set these fields to its values, or start from another run"
        )


def choose_sources(objective: Objective, other: Experiment) -> dict[str, str]:
    """Own player or follower -> the network of the other run that it starts from."""
    sources = {name: name for name in objective.players if name in other.objective.players}
    sources.setdefault(objective.generator, other.sample_with)
    for name in objective.followers:
        if name in other.objective.followers and root_player(objective, name) in sources:
            sources[name] = name
    return sources


def origin_identity(origin: Origin) -> dict[str, Any]:
    """What the new run records of the run that it starts from."""
    record, names = restore.read_record(origin.folder, origin.step), {*origin.sources.values()}
    return {
        "run": str(origin.folder),
        "id": workdir.recorded_identity(origin.folder, origin.step).id,
        "step": origin.step,
        "networks": dict(origin.sources),
        "fingerprints": {name: record["fingerprints"].get(name) for name in sorted(names)},
    }


def check_same_origin(given: str, run: Path) -> None:
    """Raises ValueError if a run that goes on has not started from the run that --from names.

    The other run may be gone by now. Its id identifies it.
    """
    recorded, (folder, step) = workdir.recorded_identity(run).started_from, parse_location(given)
    if recorded is None:
        raise ValueError(
            f"--from={given}: {run} has not started from another run, and goes on; leave --from "
            "out, or choose another --workdir for a new run"
        )
    another = workdir.is_run(folder) and workdir.recorded_identity(folder).id != recorded["id"]
    if another or step not in (None, recorded["step"]):
        raise ValueError(
            f"--from={given}: {run} has started from {recorded['run']}@{recorded['step']}, and "
            "goes on; leave --from out, or choose another --workdir for a new run"
        )


def taken_leaves(origin: Origin, name: str, own: Any, source: Any) -> dict[str, Any]:
    """The leaves that a network starts with, by path. Raises ValueError if most do not fit.

    own, source: the new network and the one that it starts from, shapes or arrays.
    """
    given = leaves_by_path(source)
    taken, own = fitting_leaves(own, given), leaves_by_path(own)
    total = sum(leaf.size for leaf in own.values())
    share = sum(leaf.size for leaf in taken.values()) / total
    if share < LEAST_SHARE:
        raise ValueError(
            f"--from={origin.given}: only {share:.0%} of the parameters of {name} fit those of "
            f"{origin.run}; use its network (model.size, model.patch_size and others)"
        )
    new = own.keys() - given.keys()
    return taken | {path: np.zeros(own[path].shape, np.float32) for path in silent_outputs(new)}


def load_start(origin: Origin, own: TrainState) -> dict[str, Any]:
    """{START: the leaves of networks and moments that the initial state takes}.

    own: shapes of the new state. Raises ValueError if a network is damaged.
    """
    wanted = {*origin.sources.values(), *(OPTIMIZER + name for name in origin.optimizers)}
    trees = {name: origin.trees[name] for name in sorted(wanted)}
    trees, _ = restore.restore_trees(origin.folder, trees, origin.step)
    targets = {**own.networks, **own.followers}
    networks = {
        name: taken_leaves(origin, name, targets[name], trees[source])
        for name, source in origin.sources.items()
    }
    moments = {}
    for name in origin.optimizers:
        found = moments_of(trees[OPTIMIZER + name])
        kept = {
            moment: fitting_leaves(own.networks[name], leaves)
            for moment, leaves in found.items()
            if moment != COUNT
        }
        moments[name] = {**kept, COUNT: found[COUNT]}
    return {START: {NETWORKS: networks, MOMENTS: moments}}


def fitted_start(objective: Objective, images: np.ndarray | None) -> dict[str, Any]:
    """{START: the leaves that players fit to training images}; {} if none does.

    images: as stored [N, ...], or None without a data set.
    """
    fitted = {
        name: leaves_by_path(player.network.fit(images))
        for name, player in objective.players.items()
        if player.network.fit is not None and images is not None
    }
    return {START: {NETWORKS: fitted, MOMENTS: {}}} if fitted else {}


def describe_origin(origin: Origin, own: TrainState, config: ConfigDict) -> list[str]:
    """Lines that say what a new run takes from another one, and which parts start fresh.

    own: shapes of the new state. Raises ValueError if most of a network does not fit.
    """
    parts = [f"{name} from {source}" for name, source in origin.sources.items()]
    lines = [f"starts from {origin.run}: {', '.join(parts)}"]
    for name, tree in own.networks.items():
        if name not in origin.sources:
            lines.append(f"{name} starts as without --from")
            continue
        lines += describe_network(origin, name, tree)
        if name not in origin.optimizers:
            lines.append(f"the optimizer of {name} starts anew")
    size, here = origin.config.data.image_size, config.data.image_size
    return lines + [f"images have {here} pixels per side, {size} there"] * (size != here)


def describe_network(origin: Origin, name: str, own: Any) -> list[str]:
    """Lines on the parameters of a player that start fresh or are left out."""
    source = origin.trees[origin.sources[name]]
    taken = taken_leaves(origin, name, own, source)
    here, there = leaves_by_path(own), leaves_by_path(source)
    silent = silent_outputs(here.keys() - there.keys())
    fresh = common_names(here.keys() - (taken.keys() - {*silent}), here)
    unused = common_names(there.keys() - here.keys(), there)
    lines = [f"fresh in {name}: {', '.join(fresh)}"] * bool(fresh)
    return lines + [f"not in {name}, and left out: {', '.join(unused)}"] * bool(unused)

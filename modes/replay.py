"""--mode=replay: repeat a training step that was not finite, and show where it broke."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from fewstep.modes.job import Job, assemble_job, supply_of
from fewstep.modes.mode import CONFIG, PLACES, WORKDIR, Mode
from fewstep.modes.recorded_run import (
    check_effect,
    check_method,
    check_moved_data,
    find_dataset,
    replace_folders,
)
from fewstep.modes.request import Request, require_workdir
from fewstep.modes.resolve import encode_if_read
from fewstep.modes.student import config_in_place_of, follow_teacher
from fewstep.objectives.base import Metrics
from fewstep.progress import progress_bar
from fewstep.training.compiled_step import abstract_state, compile_step, create_state
from fewstep.training.experiment import build_on, rebuild
from fewstep.training.replay import (
    FOLDER,
    Findings,
    find_non_finite,
    non_finite_shares,
    read_newest_record,
    with_row_losses,
)
from fewstep.training.sharding import make_mesh, put_batch
from fewstep.training.sources import open_sources
from fewstep.training.storage import restore, workdir
from fewstep.training.storage.environment import ENVIRONMENT
from fewstep.training.storage.identity import check_same_sources

SHOWN = 10  # rows and arrays


def replay(request: Request) -> None:
    """Repeat the step of the newest record of --workdir, from the checkpoint before it.

    Raises ValueError if there is no record, if the step is finite this time, and for fields that
    would change nothing.
    """
    path = require_workdir(request)
    check_effect(request, "replay", REPLAY)
    record, config = read_newest_record(path), workdir.load_config(path)
    check_method(config, request)
    config = replace_folders(config, config_in_place_of(config, request))
    recorded = workdir.recorded_identity(path)
    rebuild(config, str(path))  # raises the error for a record of another version
    config = follow_teacher(config, path)
    check_record_fits(record, config, path)
    mesh = make_mesh(**config.mesh)
    experiment = build_on(config, mesh, recorded.lengths)
    dataset = find_dataset(config, experiment, writable=False)
    check_moved_data(path, config, experiment, dataset)
    if dataset is not None:
        dataset = encode_if_read(config, dataset)[1]
    start = "{run}@{step}".format(**recorded.started_from) if recorded.started_from else ""
    job = assemble_job(path, config, experiment, dataset, mesh, start=start)
    check_same_sources(recorded, None, job.teacher, path)
    metrics = redo_step(path, record["step"], job)
    players = list(experiment.objective.players)
    found = find_non_finite(metrics, players, config.micro_batches)
    if not found:
        raise ValueError(
            f"step {record['step']} is finite on {jax.device_count()} device(s) of kind "
            f"{jax.devices()[0].device_kind}; replay it with the devices and versions of the "
            f"run, which {path / ENVIRONMENT} lists"
        )
    if jax.process_index() == 0:
        print(f"repeated step {record['step']}, which ended with: {record['message']}")
        for player, finding in found.items():
            print("\n".join(player_lines(player, finding, config.batch_size, record["indices"])))


def check_record_fits(record: Mapping[str, Any], config: ConfigDict, path: Path) -> None:
    """Raises ValueError for a record of a run with another seed or batch size."""
    indices = record["indices"]
    whole = indices is None or len(indices) == config.batch_size
    if record.get("seed", config.seed) != config.seed or not whole:
        raise ValueError(
            f"{path / FOLDER / str(record['step'])}.json is of another run: its seed or batch "
            "size differs; delete it"
        )


def redo_step(path: Path, step: int, job: Job) -> Metrics:
    """Repeat a step of a run; return its metrics on the host, with losses per row and gradients."""
    objective, optimizers = job.experiment.objective, job.experiment.optimizers
    config, mesh, frozen = job.config, job.mesh, job.frozen
    stream = open_sources(supply_of(path, job, workdir.data_order(path)))
    abstract = abstract_state(objective, optimizers, config.seed, frozen, mesh)
    state = restore.state_before(path, abstract, step)
    if state is None:
        state = create_state(objective, optimizers, config.seed, frozen, mesh)
    frozen = {name: frozen[name] for name in objective.read_only}
    arguments = optimizers, config.seed, mesh, config.micro_batches
    forward = compile_step(objective, *arguments)
    start = int(state.step)
    source, complete = stream.batches(start), stream.complete
    for _ in progress_bar(range(start + 1, step), desc=f"from step {start}", unit="step"):
        state, _ = forward(state, frozen, complete(put_batch(next(source), mesh)))
    last = compile_step(with_row_losses(objective), *arguments, non_finite_shares)
    return jax.device_get(last(state, frozen, complete(put_batch(next(source), mesh)))[1])


def player_lines(
    player: str, finding: Findings, batch_size: int, indices: Sequence[int] | None
) -> list[str]:
    """Return the lines on a player."""
    rows = [
        f"{row}" if indices is None else f"{row} (image {indices[row]})"
        for row in finding.rows[:SHOWN]
    ]
    arrays = [f"{name} ({share:.0%})" for name, share in first_items(finding.gradients).items()]
    more = len(finding.gradients) - len(arrays)
    return [
        f"{player}: loss {finding.loss:g}, gradient norm {finding.gradient_norm:g}",
        f"  rows whose loss is not finite: {len(finding.rows)} of {batch_size}"
        f"{': ' if rows else ''}{', '.join(rows)}{' ...' if len(finding.rows) > SHOWN else ''}",
        f"  gradients that are not finite: {', '.join(arrays) or 'none'}"
        f"{f' and {more} more' if more else ''}",
    ]


def first_items(items: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first SHOWN items of a mapping."""
    return dict(list(items.items())[:SHOWN])


REPLAY = Mode(
    replay,
    "Repeat a training step that was not finite, and show where it broke.",
    {**CONFIG, **WORKDIR},
    together=True,
    replaces=PLACES,
)

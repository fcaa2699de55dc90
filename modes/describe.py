"""--mode=describe: print networks, parameters, shapes and FLOPs of a config or of a run."""

from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.modes.mode import CONFIG, FROM, WORKDIR, Mode
from fewstep.modes.request import Request
from fewstep.modes.resolve import resolve_open_fields
from fewstep.modes.student import read_student
from fewstep.training.cost.compiled import step_inputs
from fewstep.training.cost.sizes import element_count, tree_bytes
from fewstep.training.cost.step_cost import forward_flops, step_flops
from fewstep.training.experiment import Experiment, build, optimizer_fields, rebuild
from fewstep.training.inheritance import describe_inherited
from fewstep.training.sharding import check_batch_size, make_mesh
from fewstep.training.start import describe_origin, find_origin
from fewstep.training.storage import workdir
from fewstep.training.storage.lengths import describe_lengths
from fewstep.training.teacher import describe_space, load_teacher_config


def describe(request: Request) -> None:
    """Print a table. Allocates nothing on a device; reads the data set only if necessary.

    Describes --config, with what it takes of --from, or else the run in --workdir.
    """
    if request.config is None and request.workdir is not None:
        if request.from_:
            raise ValueError("--from is for the new run of a --config; leave it out, or --workdir")
        config = workdir.load_config(request.workdir)
        # A recorded mesh may be that of other devices.
        experiment = rebuild(config, str(request.workdir))
        print(describe_experiment(config, experiment, make_mesh()))
        for line in describe_record(request.workdir):
            print(line)
        return
    if request.workdir is not None:
        raise ValueError("--mode=describe takes --config or --workdir; leave one of them out")
    student = read_student(request)
    config = resolve_open_fields(student.config)
    experiment = build(config)
    if config.teacher:
        load_teacher_config(config, experiment)
        print(f"teacher      {config.teacher}")
        print(f"inherited    {describe_inherited(student.inherited) or 'nothing'}")
    mesh = make_mesh(**config.mesh)
    check_batch_size(config.batch_size, mesh, config.micro_batches)
    print(describe_experiment(config, experiment, mesh))
    if request.from_:
        print("\n".join(describe_start(request.from_, config, experiment)))


def describe_start(given: str, config: ConfigDict, experiment: Experiment) -> list[str]:
    """Return the lines on what a new run takes of another one. Raises ValueError."""
    mesh = make_mesh(**config.mesh)
    state = step_inputs(config, experiment, mesh).state
    lines = describe_origin(find_origin(given, config, experiment, mesh), state, config)
    return [f"start        {line}" for line in lines]


def describe_record(run: Path) -> list[str]:
    """Return the lines on where a run comes from, and on its lengths if it was continued."""
    recorded, lines = workdir.recorded_identity(run), []
    if recorded.started_from:
        origin = recorded.started_from
        parts = [
            f"{name} from {source} (fingerprint {origin['fingerprints'][source]})"
            for name, source in origin["networks"].items()
        ]
        lines.append(
            f"started      from {origin['run']}@{origin['step']}, id {origin['id']}: "
            f"{', '.join(parts)}"
        )
    if recorded.imported:
        files = ", ".join(f"{name} ({hash})" for name, hash in recorded.imported["files"].items())
        part = recorded.imported["part"]
        lines.append(
            f"imported     {recorded.imported['layout']} from {part and f'{part} of '}{files}"
        )
    if recorded.lengths:
        lines.append(f"length       {describe_lengths(recorded.lengths)}")
    return lines


def describe_experiment(config: ConfigDict, experiment: Experiment, mesh: Mesh) -> str:
    """Return the text that `describe` prints."""
    objective = experiment.objective
    state, frozen, _ = step_inputs(config, experiment, mesh)
    flops = step_flops(config, experiment)
    evaluations = flops / forward_flops(config, experiment)
    lines = [
        f"objective    {config.method} on the {experiment.model.path.name} path, "
        f"t in [{experiment.model.path.t_min:g}, {experiment.model.path.t_max:g}]",
        f"data         {config.data.name}, {describe_space(experiment.space)}, "
        f"{experiment.num_classes} classes",
        f"devices      {mesh.size} ({', '.join(f'{k} {v}' for k, v in mesh.shape.items())})",
        f"batch        {config.batch_size}, {config.batch_size // mesh.size} per device, in "
        f"{config.micro_batches} micro-batch(es)",
    ]
    for name, player in objective.players.items():
        lines.append(
            f"player       {name}: {element_count(state.networks[name])} parameters, updated every "
            f"{player.every} step(s) by {optimizer_fields(config, name)['name']}"
        )
    for name, tree in frozen.items():
        lines.append(f"frozen       {name}: {element_count(tree)} parameters")
    for name, follower in objective.followers.items():
        sampled = ", samples" if name == experiment.sample_with else ""
        lines.append(f"follower     {name} of {follower.source}{sampled}")
    lines += [
        f"state        {tree_bytes(state) / 2**20:.1f} MiB over all devices",
        f"step         {flops / 1e9:.2f} GFLOP, {flops / config.batch_size / 1e6:.2f} MFLOP per "
        f"image, as much as {evaluations:.1f} forward passes",
        f"run          {config.steps} steps, {config.steps * config.batch_size:,} images, "
        f"{config.steps * flops / 1e15:.3f} PFLOP",
    ]
    return "\n".join(lines)


DESCRIBE = Mode(
    describe,
    "Print networks, parameters, shapes and FLOPs of a config or run.",
    {**CONFIG, **WORKDIR, **FROM},
)

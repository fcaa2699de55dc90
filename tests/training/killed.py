"""Runs in processes of their own, which send themselves a signal at a chosen place.

A run has the config's own objective, optimizer and followers, on a network of a few numbers that
compiles fast. SIGKILL from inside leaves no time to flush, close or wait.
"""

import os
import pickle
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from tests.cli import SERVER, environment
from tests.conftest import OLDER_FUSIONS
from tests.networks import affine_codec, affine_network
from tests.training.runs import small_config, synthetic_batches

TIMEOUT = 240.0  # seconds
DEVICES = 2  # more take longer to save, and are no other kind
STEPS, SAVE_EVERY, EVALUATE_EVERY = 12, 4, 6
BEGUN, FINAL = "begun", "final.pickle"


def signal_self(number=signal.SIGKILL):
    os.kill(os.getpid(), number)


def first_leaf(params):
    return jax.tree.leaves(params)[0]


def small_network(config):
    """A network of nine numbers with the inputs that the method needs, or a codec of five."""
    from fewstep.training.networks import with_network_fields
    from fewstep.training.spaces import build_space

    fields = with_network_fields(config).model
    shape = build_space(config).shape
    if fields.name == "codec":
        return affine_codec(shape)
    return affine_network()._replace(
        shape=shape,
        second_time=fields.second_time,
        guidance_input=fields.guidance_input,
        guidance_interval=fields.guidance_interval,
        trajectory=fields.get("trajectory") or 1,
        log_weight=(lambda params, t: params["c"] * t) if fields.loss_weight else None,
    )


def train_small(
    folder,
    method,
    fields,
    place=None,
    at=0,
    number=signal.SIGKILL,
    pause=0.0,
    dispatch=1,
    save=SAVE_EVERY,
    keep=0,
    log=1,
    steps=STEPS,
    lengths=(),
):
    """Train `method` in a folder to step `steps`; send a signal at `place` of step `at`, if given.

    place: "step" (while it fetches the batch), "saving" (while it writes the checkpoint),
    "evaluating". pause: seconds added to every step. dispatch: steps per dispatch. save: steps
    between checkpoints. keep: newest checkpoints that stay, 0 for all. log: steps between rows of
    the log. lengths: those of a run that was continued.
    """
    from fewstep.training.cluster import exits
    from fewstep.training.cluster.preemption import Preempted, Preemption
    from fewstep.training.compiled_step import Training
    from fewstep.training.experiment import build
    from fewstep.training.loop import train
    from fewstep.training.schedule import Schedule
    from fewstep.training.session import Upkeep
    from fewstep.training.sharding import make_mesh
    from fewstep.training.sources import Stream, abstract_batch
    from fewstep.training.storage import checkpoint

    config = small_config(method, steps=steps, **fields)
    experiment = build(config, small_network(config), lengths)
    experiment = experiment._replace(objective=experiment.objective._replace(init_from={}))
    teacher = jax.tree.map(lambda leaf: 0.5 * leaf, affine_network().init(None))
    write = checkpoint.save_state

    def save_and_die(checkpoints, state, *record):
        write(checkpoints, state, *record)
        if place == "saving" and int(state.step) == at:
            signal_self(number)

    entries = abstract_batch(experiment.objective, config.batch_size, (8, 8, 1))

    def batches(start):
        for step, batch in enumerate(synthetic_batches(config, start), start=start + 1):
            record_step(folder, step)
            time.sleep(pause)
            if (place, at) == ("step", step):
                signal_self(number)
            pairs = {"eps": batch["x"], "x_0": -batch["x"], "label": batch["label"]}
            given = {**batch, "pairs": pairs}
            yield {name: given[name] for name in entries}

    def evaluate(state):
        if (place, at) == ("evaluating", int(state.step)):
            signal_self(number)
        return {
            "frechet_1": float(jnp.abs(first_leaf(state.networks[experiment.objective.generator])))
        }

    checkpoint.save_state = save_and_die
    try:
        with Preemption() as preemption:
            record_step(folder, 0)
            state = train(
                Training(
                    objective=experiment.objective,
                    optimizers=experiment.optimizers,
                    frozen=dict.fromkeys(experiment.objective.frozen, teacher),
                    mesh=make_mesh(),
                    seed=config.seed,
                    batch_size=config.batch_size,
                ),
                Stream(batches, dict),
                Schedule(steps, log, save, EVALUATE_EVERY, dispatch),
                Upkeep(
                    Path(folder),
                    {"method": method},
                    retention=checkpoint.Retention(newest=keep),
                ),
                evaluate,
                preemption=preemption,
            )
    except Preempted:
        sys.exit(exits.PREEMPTED)
    except KeyboardInterrupt:
        sys.exit(exits.INTERRUPTED)
    Path(folder, FINAL).write_bytes(pickle.dumps(jax.device_get(state)))


def start_process(*arguments, **options):
    """Start `train_small` in a process of its own; returns the process."""
    process = SERVER.Process(target=train_quietly, args=arguments, kwargs=options)
    process.start()
    return process


def run_process(*arguments, expect=0, **options):
    """Run `train_small` in a process of its own; fails unless its exit code is `expect`."""
    process = start_process(*arguments, **options)
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
    assert process.exitcode == expect, f"{arguments}: {process.exitcode}"


def train_quietly(*arguments, newer_fusions=False, **options):
    """`train_small`, which prints errors but no rows of the log.

    newer_fusions: compile as main.py does. One step and several then round alike.
    """
    from fewstep.training import report

    os.environ["XLA_FLAGS"] = environment(DEVICES)["XLA_FLAGS"]
    if newer_fusions:
        os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace(OLDER_FUSIONS, "")
    logging.set_verbosity(logging.ERROR)
    report.note = lambda line: None
    train_small(*arguments, **options)


def saved_steps(folder):
    """The steps of the complete checkpoints of a run."""
    return sorted(int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit())


def final_state(folder):
    """The final state of a run, as host arrays."""
    return pickle.loads(Path(folder, FINAL).read_bytes())


def wait_for(condition, seconds=TIMEOUT):
    """Poll until a condition holds; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def record_step(folder, step):
    """Record in the run's folder that this process begins a step; 0: that it handles signals."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with Path(folder, BEGUN).open("a") as file:
        file.write(f"{os.getpid()} {step}\n")


def begun_steps(folder, process):
    """The steps that a process has begun, after a 0 once it handles signals."""
    if not Path(folder, BEGUN).exists():
        return []
    noted = (line.split() for line in Path(folder, BEGUN).read_text().splitlines())
    return [int(step) for number, step in noted if int(number) == process.pid]


def wait_for_steps(folder, process, count):
    """Wait until this process has completed `count` steps or ended; 0: until it handles signals.

    The log would not tell: it also holds steps of processes that were killed before.
    """
    enough = 1 if count == 0 else count + 2  # the 0, and the step after them
    wait_for(lambda: len(begun_steps(folder, process)) >= enough or not process.is_alive())


def have_same_bits(a, b):
    """Whether two trees have the same structure and bits."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )

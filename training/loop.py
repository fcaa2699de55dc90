"""The training loop: restore, dispatch steps, collect their metrics, do what is due.

training/session.py says what is due and in which order; training/schedule.py says how often.
"""

from collections.abc import Callable
from functools import partial

from fewstep.objectives.stages import stage_ends
from fewstep.training.cluster.preemption import Preemption
from fewstep.training.compiled_step import Training, compile_dispatch, restore_or_create
from fewstep.training.report import Report, headlines
from fewstep.training.schedule import Schedule
from fewstep.training.session import Evaluate, Upkeep, open_session
from fewstep.training.sharding import check_batch_size
from fewstep.training.sources import Stream
from fewstep.training.storage import restore
from fewstep.training.storage.checkpoint import UNFINISHED
from fewstep.training.storage.train_state import TrainState


def train(
    training: Training,
    stream: Stream,
    schedule: Schedule,
    upkeep: Upkeep,
    evaluate: Evaluate,
    *,
    preemption: Preemption | None = None,
    least_seconds: float | None = None,
    announce: Callable[[int], None] = lambda start: None,
) -> TrainState:
    """Train up to step schedule.steps, from the newest whole checkpoint if there is one.

    stream: this process's batches. evaluate: state -> numbers to log. least_seconds: shortest time
    of a step (training.pace.Pace). announce: called with the step that the run starts from.

    Raises DivergedError; Preempted once the state is saved; OSError if a save fails.
    """
    check_batch_size(training.batch_size, training.mesh, training.micro_batches)
    preemption = preemption or Preemption()
    ends = stage_ends(training.objective.stages, schedule.steps)
    schedule = schedule._replace(ends=ends)
    state = restore_or_create(training, upkeep.workdir)
    dispatch = compile_dispatch(training, stream.complete)
    start = int(state.step)
    unfinished = restore.read_record(upkeep.workdir, start).get(UNFINISHED) if start else None
    announce(start)
    source = stream.batches(start)
    open_report = partial(
        Report,
        upkeep.workdir,
        start,
        schedule,
        training.optimizers,
        batch_size=training.batch_size,
        headlines=headlines(training.objective),
        stages=training.objective.stages,
        unfinished=unfinished,
        least_seconds=least_seconds,
        log_to=upkeep.log_to,
    )
    with open_session(state, schedule, upkeep, evaluate, preemption, open_report) as session:
        session.resume()
        while session.done < schedule.steps:
            session.before_steps()
            count = schedule.next_dispatch(session.done)
            with session.profile.step(session.done):
                state, metrics = dispatch(state, source, count)
            session.after_steps(state, count, metrics)
            session.do_what_is_due()
    return state

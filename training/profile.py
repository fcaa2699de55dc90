"""A trace of some training steps, of hosts and devices: WORKDIR/profile/START-STOP/PROCESS.

JAX's profiler writes, in plugins/profile/TIME below that, HOST.xplane.pb for TensorBoard's profile
plugin, XProf, and HOST.trace.json.gz, which https://ui.perfetto.dev opens.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import jax

from fewstep.progress import note

FOLDER = "profile"


class Window(NamedTuple):
    """The steps that follow `start` steps, up to step `stop`."""

    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"


def check_window(window: Window, done: int, steps: int) -> None:
    """Raises ValueError unless a run of so many steps, `done` of them behind it, has the window."""
    start, stop = window
    if start < 0 or start >= stop:
        raise ValueError(
            f"--profile={window} must be START:STOP with 0 <= START < STOP; {window.start}:"
            f"{max(window.start, 0) + 3} traces three steps"
        )
    if start < done or stop > steps:
        raise ValueError(
            f"--profile={window} does not lie in the steps that remain, {done}:{steps}"
            + ("; the run has no more of them, raise --config.steps" if done >= steps else "")
        )


class Profile:
    """Traces the steps of a window; entered around all steps, so that a failing run ends it."""

    def __init__(self, workdir: Path, window: Window | None) -> None:
        self.window, self.running = window, False
        if window:
            name = f"{window.start}-{window.stop}"
            self.folder = workdir / FOLDER / name / str(jax.process_index())

    def begins(self, done: int) -> bool:
        """Whether the trace is to begin after `done` steps, once the devices have done them."""
        return self.window is not None and done == self.window.start

    def ends(self, done: int) -> bool:
        """Whether the trace is to end after `done` steps, once the devices have done them."""
        return self.running and done == self.window.stop

    def step(self, done: int) -> AbstractContextManager:
        """Marks the dispatch of the steps after `done`, if they are traced."""
        if not self.running:
            return nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=done)

    def begin(self) -> None:
        """Begin the trace."""
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call of every function would bury the rest
        jax.profiler.start_trace(self.folder, profiler_options=options)
        self.running = True

    def end(self) -> None:
        """Write the trace and, in the first process, say where it lies."""
        self.running = False
        jax.profiler.stop_trace()
        if jax.process_index() == 0:
            note(
                f"profile of steps {self.window.start + 1} to {self.window.stop}: {self.folder}; "
                f"open it by tensorboard --logdir={self.folder.parent} (pip install tensorboard "
                "xprof), or its .trace.json.gz in https://ui.perfetto.dev"
            )

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:  # the run ends before the window does
            self.end()

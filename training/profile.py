"""A trace of hosts and devices during some training steps: WORKDIR/profile/START-STOP/PROCESS.

JAX's profiler writes two files to plugins/profile/TIME below that folder. XProf, the profile plugin
of TensorBoard, opens HOST.xplane.pb; https://ui.perfetto.dev opens HOST.trace.json.gz.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import jax

from fewstep.progress import note

FOLDER = "profile"


class Window(NamedTuple):
    """The training steps from `start` + 1 to `stop`."""

    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"


def check_window(window: Window, done: int, steps: int) -> None:
    """Raises ValueError unless the window lies in the remaining steps, `done` + 1 to `steps`."""
    start, stop = window
    if start < 0 or start >= stop:
        raise ValueError(
            f"--profile={window} must be START:STOP with 0 <= START < STOP; {window.start}:"
            f"{max(window.start, 0) + 3} traces three steps"
        )
    if start < done or stop > steps:
        raise ValueError(
            f"--profile={window} does not lie in the remaining steps {done}:{steps}; "
            + ("the run is complete, raise --config.steps" if done >= steps else "choose others")
        )


class Profile:
    """Traces the steps of a window; entered around all steps, so that an error ends the trace."""

    def __init__(self, workdir: Path, window: Window | None) -> None:
        self.window, self.running = window, False
        if window:
            name = f"{window.start}-{window.stop}"
            self.folder = workdir / FOLDER / name / str(jax.process_index())

    def begins(self, done: int) -> bool:
        """Whether to begin the trace after `done` steps; the devices must be idle then."""
        return self.window is not None and done == self.window.start

    def ends(self, done: int) -> bool:
        """Whether to end the trace after `done` steps; the devices must be idle then."""
        return self.running and done == self.window.stop

    def step(self, done: int) -> AbstractContextManager:
        """A context that marks the dispatch of the steps after `done`, if they are traced."""
        if not self.running:
            return nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=done)

    def begin(self) -> None:
        """Begin the trace."""
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # Python calls would bury everything else
        jax.profiler.start_trace(self.folder, profiler_options=options)
        self.running = True

    def end(self) -> None:
        """Write the trace; process 0 says where it lies."""
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
        if self.running:  # the run ended inside the window
            self.end()

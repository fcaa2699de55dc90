"""Draw a trace of --profile: when each thread ran operations, and which operations took longest.

    python main.py --config=configs/digits.py:shortcut --workdir=runs/digits --profile=50:53
    python -m examples.trace --folder=runs/digits/profile/50-53/0 --out=profile.png

The upper plot has a line for each thread of the host or of a device that ran XLA operations. One
more line is the training thread: its dispatches, and its waits for the devices. The lower plot has
the operations by their time per training step, over all threads.
"""

import gzip
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FOLDER = flags.DEFINE_string(
    "folder", None, "Folder of one process's trace: WORKDIR/profile/START-STOP/PROCESS."
)
OUT = flags.DEFINE_string("out", "profile.png", "File of the picture.")

STEP, WAIT = "train", "np.asarray(jax.Array)"  # events of the training thread
SHOWN = 8  # operations in the lower plot
COLOURS = {"operations": "#0072b2", "dispatch": "#d55e00", "waiting": "#c8c8c8"}

Event = Mapping[str, Any]


def read_events(folder: Path) -> tuple[list[Event], dict[tuple[int, int], str]]:
    """Events of the newest trace that have a duration, and the names of threads."""
    traces = sorted(folder.glob("plugins/profile/*/*.trace.json.gz"))
    if not traces:
        raise FileNotFoundError(
            f"{folder} has no plugins/profile/*/*.trace.json.gz; give the folder of one process"
        )
    content = json.loads(gzip.decompress(traces[-1].read_bytes()))["traceEvents"]
    names = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in content
        if event.get("name") == "thread_name"
    }
    return [event for event in content if event.get("ph") == "X"], names


def thread(event: Event) -> tuple[int, int]:
    """(process, thread) of an event."""
    return event["pid"], event["tid"]


def is_operation(event: Event) -> bool:
    """Whether the event is an XLA operation, on a device or on a thread of the host."""
    return "hlo_op" in event.get("args", {})


def intervals(events: Sequence[Event]) -> list[tuple[float, float]]:
    """(start, length) of events, in ms."""
    return [(event["ts"] / 1e3, event["dur"] / 1e3) for event in events]


def draw_timeline(
    axes: Axes, events: Sequence[Event], names: Mapping[tuple[int, int], str]
) -> None:
    """Draw a line for each thread."""
    operations = [event for event in events if is_operation(event)]
    steps = [event for event in events if event["name"] == STEP]
    host = {thread(event) for event in steps}
    waiting = [event for event in events if event["name"] == WAIT and thread(event) in host]
    axes.broken_barh(intervals(waiting), (-0.4, 0.8), color=COLOURS["waiting"])
    axes.broken_barh(intervals(steps), (-0.4, 0.8), color=COLOURS["dispatch"])
    labels = ["training thread:\ndispatch (red), waiting (grey)"]
    busy = Counter(map(thread, operations)).most_common()
    for line, (own, _) in enumerate(busy, start=1):
        of_thread = [event for event in operations if thread(event) == own]
        axes.broken_barh(intervals(of_thread), (line - 0.4, 0.8), color=COLOURS["operations"])
        labels.append(names.get(own, str(own)).partition("/")[0])
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("ms")


def draw_operations(axes: Axes, events: Sequence[Event]) -> None:
    """Draw the operations that took longest, in ms per training step."""
    steps = max(sum(event["name"] == STEP for event in events), 1)
    totals: Counter[str] = Counter()
    for event in filter(is_operation, events):
        totals[event["name"]] += event["dur"] / 1e3 / steps
    names, values = zip(*totals.most_common(SHOWN), strict=True)
    rest = sum(totals.values()) - sum(values)
    axes.barh([*names, "all others"], [*values, rest], color=COLOURS["operations"])
    axes.invert_yaxis()
    axes.set_xlabel("ms per step, in all threads")


def main(_: list[str]) -> None:
    """Draw the picture."""
    events, names = read_events(Path(FOLDER.value))
    drawing = Figure((7.5, 5.5), dpi=110, layout="constrained")
    above, below = drawing.subplots(2, 1, height_ratios=(1.0, 1.3))
    draw_timeline(above, events, names)
    draw_operations(below, events)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    drawing.savefig(OUT.value)
    print(OUT.value)


if __name__ == "__main__":
    flags.mark_flag_as_required("folder")
    app.run(main)

"""Measure what latents cost the input of training, beside images of the same shape.

    python -m bench.read_latents --rows=20000
    python -m bench.read_latents --rows=512 --batch=16 --batches=12 --step=nano

It reads batches of random posteriors of 32 x 32 x 4 as training does, draws latents from them, and
reads batches of images of that shape. It prints rows for each second of CPU time of the host, which
other programs on the machine do not change. With --step it also takes training steps of flow
matching by a DiT of that size, in turn on latents and on images, from memory-mapped files to
updated parameters, and prints the ratio of their times.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from bench.cases import CASES, case_config
from fewstep.configs import base
from fewstep.data import Posteriors, Split, image_batches, moment_batches
from fewstep.training.compiled_step import Training, compile_dispatch, create_state
from fewstep.training.experiment import build
from fewstep.training.posteriors import draw_latents
from fewstep.training.sharding import make_mesh

ROWS = flags.DEFINE_integer("rows", 20_000, "Rows of the data set, in memory-mapped files.")
BATCHES = flags.DEFINE_integer("batches", 60, "Batches of each measurement.")
BATCH = flags.DEFINE_integer("batch", 256, "Rows of a batch.")
STEP = flags.DEFINE_string("step", "", "Size of a DiT, whose whole training step is measured.")

SHAPE = (32, 32, 4)
AHEAD = 8  # batches that the pipeline reads before it is measured


def memory_map(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A file of random bytes, of numbers that are small and finite, in the page cache."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    rng = np.random.default_rng(0)
    for row in range(0, len(array), 256):
        array[row : row + 256] = rng.integers(0, 100, array[row : row + 256].shape)
    array.flush()
    return np.load(path, mmap_mode="r")


def rows_per_second(batches: Iterator, use: Callable = lambda batch: None) -> float:
    """Rows for each second of CPU time, over all threads."""
    for _ in range(AHEAD):
        use(next(batches))
    since = time.process_time()
    for _ in range(BATCHES.value):
        use(next(batches))
    return BATCHES.value * BATCH.value / (time.process_time() - since)


def step_seconds(
    size: str, streams: Mapping[str, tuple[Iterator, Callable]]
) -> dict[str, np.ndarray]:
    """CPU seconds of training steps on each stream, in turn, over all threads.

    streams: (batches on the host, what completes them on the devices) by name.
    """
    config = case_config(CASES["flow_matching"], size, BATCH.value, **{"model.dtype": "float32"})
    experiment, mesh = build(config), make_mesh()
    optimizers = experiment.optimizers
    training = Training(experiment.objective, optimizers, {}, mesh, config.seed, BATCH.value)
    runs = {
        name: [compile_dispatch(training, complete), batches]
        for name, (batches, complete) in streams.items()
    }
    state = create_state(experiment.objective, optimizers, config.seed, {}, mesh)
    seconds = {name: [] for name in runs}
    for _ in range(BATCHES.value + 1):
        for name, (dispatch, batches) in runs.items():
            since = time.process_time()
            state, metrics = dispatch(state, batches, 1)
            jax.block_until_ready((state, metrics))
            seconds[name].append(time.process_time() - since)
    return {name: np.array(values[1:]) for name, values in seconds.items()}  # the first compiles


def main(_: list[str]) -> None:
    """Print three rates."""
    options = {"batch_size": BATCH.value, "seed": 0, "flip": True}
    labels = np.zeros(ROWS.value, np.int32)
    draw = draw_latents(base.config())
    with tempfile.TemporaryDirectory() as folder:
        moments = memory_map(Path(folder, "moments"), (ROWS.value, 2, 2, *SHAPE), np.float16)
        images = memory_map(Path(folder, "images"), (ROWS.value, *SHAPE), np.uint8)
        posteriors = Posteriors(moments, {})
        split = Split(images, labels)

        def read() -> Iterator:
            return moment_batches(split, posteriors, **options)

        for name, rate in {
            "images read": rows_per_second(image_batches(split, **options)),
            "posteriors read": rows_per_second(read()),
            "posteriors read, latents drawn": rows_per_second(
                read(), lambda batch: jax.block_until_ready(draw(batch))
            ),
        }.items():
            print(f"{rate:9,.0f} {name} per CPU second")
        if STEP.value:
            found = step_seconds(
                STEP.value,
                {"pixels": (image_batches(split, **options), dict), "latents": (read(), draw)},
            )
            ratios = found["latents"] / found["pixels"]
            low, middle, high = np.quantile(ratios, (0.1, 0.5, 0.9))
            print(
                f"{middle:9.3f} of a step on images is a step on latents ({low:.3f} to {high:.3f})"
            )


if __name__ == "__main__":
    app.run(main)

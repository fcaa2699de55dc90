"""The Python interface: runs that sample, training, and measuring (docs/python.md).

It shares the code of the modes, so results and messages are those of the command line. Errors are
exceptions: ValueError and OSError for what the caller can mend, `DivergedError` for a run that
diverges. The names in a message are those of the command line, such as --steps for `steps`.
"""

import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from fewstep.configs.methods import TEACHERS
from fewstep.configs.python import fields_from_python, read_config
from fewstep.diffusion.path import Path as DiffusionPath
from fewstep.eval.given import read_samples
from fewstep.eval.measure_given import measure_given
from fewstep.models.conditioning import INTERVAL_EMBEDDERS
from fewstep.models.model import Model
from fewstep.modes.bucket import on_disk
from fewstep.modes.draws import Draw, choose_labels, choose_pairs
from fewstep.modes.recorded_run import LoadedRun, load_run
from fewstep.modes.request import Request, checked, expand_home, permit_code
from fewstep.modes.run_page import write_run_page
from fewstep.modes.sampling import check_draw, checked_sampler, finished_samples, guidance_scale
from fewstep.modes.train_run import train_run
from fewstep.objectives.base import Objective, Params
from fewstep.training.classes import class_names
from fewstep.training.cost.memory import memory_errors_in_words
from fewstep.training.generate import BatchSampler
from fewstep.training.sharding import make_mesh

COUNT = 16  # samples, unless the caller says how many


class Config(NamedTuple):
    """A config file with some fields replaced.

    values: every field of configs/base.py. given: dotted names of the replaced fields; a student
    inherits the others from its teacher. name: FILE[:METHOD].
    """

    values: ConfigDict
    given: Mapping[str, Any]
    name: str


class Run:
    """A trained network, ready to sample on all devices; `load` makes it.

    folder: of the run. step: training step of its parameters. network: name of the network or
    average that samples. config: its record. params: parameters, a tree of arrays. model: the
    network on its path. objective: its method.
    """

    def __init__(self, loaded: LoadedRun) -> None:
        self._loaded = loaded
        self._samplers: dict[tuple[int, float], BatchSampler] = {}

    folder: Path = property(lambda self: self._loaded.folder)
    step: int = property(lambda self: self._loaded.step)
    network: str = property(lambda self: self._loaded.experiment.sample_with)
    config: ConfigDict = property(lambda self: self._loaded.config)
    params: Params = property(lambda self: self._loaded.params)
    model: Model = property(lambda self: self._loaded.experiment.model)
    path: DiffusionPath = property(lambda self: self.model.path)
    objective: Objective = property(lambda self: self._loaded.experiment.objective)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, step={self.step}, network={self.network!r})"

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of the labels; () if the record has none."""
        return class_names(self.folder) if self._loaded.experiment.num_classes else ()

    def sample(
        self,
        labels: Sequence[int | str] | None = None,
        *,
        count: int | None = None,
        steps: int = 1,
        seed: int = 0,
        guidance: float | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Samples as their space stores them: uint8 [N, H, W, C] for images.

        Image i has the noise of seed + i, and so is the one of --mode=sample with that seed, label
        and steps, bit for bit. The first call with a pair of (steps, batch_size) compiles.

        labels: N classes by index, name, or range such as "0-9"; by default image i has class
        (seed + i) modulo their number, as in --mode=sample. count: N, without labels. steps:
        sampling steps. guidance: its scale, form A; None is the run's own. batch_size: rows that
        the devices compute together, also for fewer samples; None is evaluate.batch_size of the
        run. Bits may depend on it.

        Raises ValueError for a label that is not a class, or what the run cannot sample;
        NonFiniteError for samples that are not finite.
        """
        draw = self._draw(labels, count, seed)
        check_draw(steps, draw.seeds.tolist())
        scale = guidance_scale(self._loaded, guidance)
        rows = self._rows(batch_size)
        with _as_the_command_line():
            if (steps, scale) not in self._samplers:
                self._samplers[steps, scale] = checked_sampler(self._loaded, steps, scale)
            sampler = self._samplers[steps, scale]
            return np.concatenate([*finished_samples(self._loaded, sampler, draw, rows)])

    def _draw(self, labels: Sequence[int | str] | None, count: int | None, seed: int) -> Draw:
        """The pairs of seed and label of a call of `sample`. Raises ValueError."""
        if isinstance(labels, str | int) or (
            isinstance(labels, np.generic | np.ndarray | Array) and np.ndim(labels) == 0
        ):
            raise ValueError(
                f"labels={labels!r} is one label; give a list with one for each image, as in "
                f"labels=[{labels!r}] * {COUNT}"
            )
        classes = self._loaded.experiment.num_classes
        asked = () if labels is None else labels
        plain = [each if isinstance(each, str) else operator.index(each) for each in asked]
        chosen = choose_labels(plain, classes, self.classes)
        if labels is not None and count not in (None, len(chosen)):
            raise ValueError(f"count={count}, but there are {len(chosen)} labels; leave out count")
        number = (COUNT if count is None else count) if labels is None else len(chosen)
        if number < 1:
            raise ValueError(f"{number} samples are none; ask for 1 or more")
        seeds = range(operator.index(seed), operator.index(seed) + number)
        check_draw(1, (seeds[0], seeds[-1]))
        return choose_pairs(seeds, chosen, classes)

    def _rows(self, batch_size: int | None) -> int:
        """The rows of a batch, a multiple of the number of devices. Raises ValueError."""
        devices = self._loaded.mesh.size
        size = self.config.evaluate.batch_size if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"batch_size={size} must be 1 or more")
        return -(-size // devices) * devices

    def denoise(self, x_t: ArrayLike, t: ArrayLike, labels: ArrayLike | None = None) -> Array:
        """The data that the network predicts at (x_t, t), E[x_0 | x_t] for a denoiser: [B, ...].

        x_t: float32 [B, ...], as the network sees it: images [B, H, W, C] around [-1, 1]. t: [B] or
        one number, in [path.t_min, path.t_max]. labels: int [B] or one number; None and -1 are the
        null class. A one-step generator predicts data at t_max alone. Differentiable; JAX
        transforms it.

        Raises ValueError for images of uint8, and for a label that is not a class, if JAX knows its
        value.
        """
        x_t = jnp.asarray(x_t)
        if jnp.issubdtype(x_t.dtype, jnp.unsignedinteger):
            raise ValueError(f"x_t is {x_t.dtype}; give floats around [-1, 1], as x / 127.5 - 1 is")
        x_t, rows = x_t.astype(jnp.float32), x_t.shape[:1]
        label = self._checked_labels(-1 if labels is None else labels)
        condition = {"label": jnp.broadcast_to(label, rows)}
        if self.model.network.guidance_input:
            scale = jnp.float32(self.objective.guidance_scale)
            condition["guidance_scale"] = jnp.broadcast_to(scale, rows)
        if self.model.network.guidance_interval:
            ends = self.config.objective.guidance_interval
            for name, end in zip(INTERVAL_EMBEDDERS.values(), ends, strict=True):
                condition[name] = jnp.broadcast_to(jnp.float32(end), rows)
        times = jnp.broadcast_to(jnp.asarray(t, jnp.float32), rows)
        return self._endpoints(self.params, x_t, times, condition).x_0

    def _checked_labels(self, labels: ArrayLike) -> Array:
        """The labels as int32. Raises ValueError for known ones that are no class."""
        classes = self._loaded.experiment.num_classes
        if any(isinstance(part, Tracer) for part in jax.tree.leaves(labels)):
            found = jnp.asarray(labels)
            fits = np.issubdtype(found.dtype, np.integer)
        else:
            found = np.asarray(labels)
            fits = (
                np.issubdtype(found.dtype, np.integer) and ((found >= -1) & (found < classes)).all()
            )
        if not fits:
            raise ValueError(
                f"labels={labels} must be integers from -1, the null class, to {classes - 1}"
            )
        return jnp.asarray(found, jnp.int32)

    @cached_property
    def _endpoints(self) -> Any:
        return jax.jit(self.model.endpoints)


def load(
    run: str | os.PathLike[str],
    *,
    step: int | None = None,
    network: str = "",
    solver: str = "",
    codec_weights: str = "",
) -> Run:
    """The run in a folder, ready to sample.

    step: training step of the checkpoint; None is the newest. network: which network or average,
    such as ema_0.999; "" is the one that samples by the config. solver: what samples a denoiser,
    such as heun; "" is that of the config. codec_weights: the file or run of the codec of a run on
    latents, if it is no longer where the run says.

    Raises ValueError for a folder that is no run, or that lacks the checkpoint or the network, and
    for a solver of a run that no solver samples.
    """
    fields = {"codec.weights": expand_home(codec_weights)} if codec_weights else {}
    with _as_the_command_line(), on_disk(_path(run), trains=False) as folder:
        request = Request(
            workdir=folder, checkpoint=step, network=network, solver=solver, fields=fields
        )
        return Run(load_run(request))


def config(name: str | os.PathLike[str], **fields: Any) -> Config:
    """The config FILE[:METHOD] with some fields replaced.

    name: such as configs/digits.py:shortcut; a file that is not here comes with Fewstep. fields: by
    dotted name, as in **{"optimizer.learning_rate": 3e-4}, or those of a group as a dictionary, as
    in optimizer={"learning_rate": 3e-4}.

    Raises ValueError for a file, method or field that does not exist, and for a wrong value.
    """
    name, fields = os.fspath(name), fields_from_python(fields)
    read = read_config(expand_home(name), fields)
    permit_code(read.data.name, read.teacher)
    return Config(checked(read), fields, name)


def train(config: Config | ConfigDict, workdir: str | os.PathLike[str], *, start: str = "") -> Run:
    """Train up to config.steps, or go on from the newest checkpoint; return the run.

    As --mode=train does, it writes checkpoints, log and evaluations to the folder, and a second
    call goes on bit for bit. Ctrl-C, or the stop button of a notebook, saves before it raises
    KeyboardInterrupt.

    config: of `config`; a ConfigDict, such as the `config` of a run, inherits nothing from a
    teacher. start: RUN[@STEP], another run whose networks a new run starts from.

    Raises ValueError before any compute and if the memory is not enough, OSError if a file cannot
    be written, and DivergedError.
    """
    asked = config if isinstance(config, Config) else Config(config, {}, "")
    file, given = asked.name.partition(":")[0], asked.given
    request = Request(
        config=checked(asked.values.copy_and_resolve_references()),
        given=tuple(sorted(given)) if file else None,
        workdir=_path(workdir),
        from_=expand_home(start),
        config_of_method=lambda method: checked(read_config(f"{file}:{method}", given)),
        teachers=TEACHERS,
    )
    with (
        _as_the_command_line(),
        on_disk(request.workdir, trains=True) as folder,
        memory_errors_in_words(),
    ):
        train_run(request._replace(workdir=folder))
        write_run_page(folder)
    return load(workdir)


def evaluate(
    samples: ArrayLike | str | os.PathLike[str],
    reference: str | os.PathLike[str],
    *,
    split: str = "train",
    labels: ArrayLike | None = None,
    features: str = "",
    weights: str | os.PathLike[str] = "",
) -> dict[str, Any]:
    """Every metric of samples that any program has made, with the protocol of the numbers.

    samples: uint8 [N, H, W, C] with C 1 or 3; or a folder, .zip, .npz or .npy of them. reference: a
    data set such as digits or folder:PATH, a folder, or an .npz of statistics or images; it is read
    at the size of the samples. split: train, test or all. labels: int [N], requested of whatever
    made the samples; None takes those of the file. features, weights: as in config.evaluate; ""
    is `classifier` for digits and fashion_mnist, else `inception`.

    Returns `metrics` by name, `protocol`, the floor of `real` images and `warnings`, as plain
    values: what --mode=measure writes. Raises ValueError or FileNotFoundError before any compute.
    """
    place = _path(samples) if isinstance(samples, str | os.PathLike) else samples
    return measure_given(
        read_samples(place, labels),
        expand_home(os.fspath(reference)),
        make_mesh(),
        split=split,
        features=features,
        weights=expand_home(os.fspath(weights)),
    )


@contextmanager
def _as_the_command_line() -> Iterator[None]:
    """The settings under which main.py runs, for as long as a call lasts.

    JAX compiles the same programs, and libraries do not log what Fewstep reports itself.
    """
    before, level = jax.config.jax_softmax_custom_jvp, logging.get_verbosity()
    jax.config.update("jax_softmax_custom_jvp", True)
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        jax.config.update("jax_softmax_custom_jvp", before)
        logging.set_verbosity(level)


def _path(place: str | os.PathLike[str]) -> Path:
    """A path with ~ expanded. Raises ValueError for a user that does not exist."""
    return Path(expand_home(os.fspath(place)))

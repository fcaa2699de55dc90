"""The sampler of a run as an ONNX graph, by jax2onnx.

    noise [B, ...] float32, labels [B] int32, draws [steps, B, ...]  ->  samples [B, ...] float32

The graph has the parameters, the steps and the guidance of one sampler. B is free. Samples of a
network on latents are decoded, and no samples are cut to [-1, 1]. Everything is float32.

draws is the noise that a sampler draws between its steps, since ONNX has not JAX's random numbers.
The graph of a sampler that draws none has no such input.
"""

import contextlib
import importlib.util
import io
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr

from fewstep.objectives.stages import check_sampling_steps
from fewstep.samplers.grids import named_steps
from fewstep.training.codecs import network_codec
from fewstep.training.experiment import check_guidance, rebuild
from fewstep.training.exports.exported import Contents, Exported

FILE = "sampler.onnx"
INPUTS, OUTPUTS = ("noise", "labels", "draws"), ("samples",)
BATCH = "B"
# Of the network's config: what changes how it is computed and not what.
PLAIN = {"attention": "xla", "dtype": "float32", "remat": False, "scan": False}
INSTALL = "pip install -r requirements-export.txt -c constraints.txt"
LOADING = """\
With ONNX Runtime:

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
noise = np.random.default_rng(0).standard_normal((4, {shape})).astype(np.float32)
labels = np.array([{labels}], np.int32)
{draws}samples = session.run(None, {{{inputs}}})[0]  # {meaning}
```

The graph samples in {steps} step(s) at guidance {guidance:g}, with any number of rows.{null} Large
parameters are in a second file, `{file}.data`, which must lie beside it."""

DRAWS = """\
draws = np.random.default_rng(1).standard_normal(({steps}, 4, {shape})).astype(np.float32)
"""


class Sampling(NamedTuple):
    """How a graph samples."""

    steps: int
    guidance_scale: float


def onnx_contents(exported: Exported) -> Contents:
    """The graph of a run's sampler, by default in the fewest steps that the run is evaluated in.

    Raises ValueError for a run that does not sample, or not in these steps, and without jax2onnx.
    """
    check_exportable(exported, "onnx")
    if len(exported.sampling_steps) > 1:
        given = ",".join(map(str, exported.sampling_steps))
        raise ValueError(f"--steps={given}: a graph samples in one number of steps; name one")
    steps = exported.sampling_steps or exported.config.evaluate.steps
    if not steps:
        raise ValueError("--steps is missing, and the run is evaluated in none; add --steps=1")
    sampling = Sampling(min(steps), exported.guidance_scale)
    check_sampling(exported, sampling)
    write = partial(save_graph, exported=exported, sampling=sampling)
    return Contents({FILE: write}, loading(exported, sampling))


def check_exportable(exported: Exported, form: str) -> None:
    """Raises ValueError without jax2onnx, and for a run that draws no samples."""
    if importlib.util.find_spec("jax2onnx") is None:
        raise ValueError(f"--format={form} needs jax2onnx; install it by: {INSTALL}")
    if exported.experiment.objective.reconstructs:
        raise ValueError(
            f"--format={form} is for samplers, and {exported.config.method} reconstructs images; "
            "use --format=safetensors"
        )


def check_sampling(exported: Exported, sampling: Sampling) -> None:
    """Raises ValueError for steps or a scale that the network does not sample in."""
    stages = exported.experiment.objective.stages
    with named_steps(f"--steps={sampling.steps}"):
        check_guidance(exported.experiment, sampling.guidance_scale)
        check_sampling_steps(stages, exported.step, (sampling.steps,))
        jax.eval_shape(sampler(exported, sampling), *abstract_inputs(exported, sampling, 1))


def sampler(exported: Exported, sampling: Sampling) -> Callable[..., jax.Array]:
    """(noise, labels, draws or keys) -> samples, decoded if the run has a codec."""
    config = exported.config.copy_and_resolve_references()
    config.model.update({name: value for name, value in PLAIN.items() if name in config.model})
    objective = rebuild(config, "the run").objective
    params = jax.tree.map(jnp.asarray, exported.params)
    codec = None if exported.codec is None else network_codec(config)

    def sample(noise: jax.Array, labels: jax.Array, draws: jax.Array | None = None) -> jax.Array:
        x = objective.sample(params, noise, {"label": labels}, draws, **sampling._asdict())
        return x if codec is None else codec.decode(exported.codec.params, x)

    return sample


def draws_noise(exported: Exported, sampling: Sampling) -> bool:
    """Whether the sampler uses the noise that it may draw between its steps."""
    inputs = abstract_inputs(exported, sampling, 1)
    traced = jax.make_jaxpr(sampler(exported, sampling))(*inputs).jaxpr
    return dce_jaxpr(traced, [True] * len(traced.outvars))[1][-1]


def abstract_inputs(
    exported: Exported, sampling: Sampling, rows: int | str
) -> list[jax.ShapeDtypeStruct]:
    """Shapes of noise, labels and draws."""
    shape = (rows, *exported.experiment.space.shape)
    floats = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32)
    return [floats(shape), labels, floats((sampling.steps, *shape))]


def save_graph(path: Path, exported: Exported, sampling: Sampling) -> None:
    """Trace the sampler and write its graph."""
    trace_graph(exported, sampling, return_mode="file", output_path=str(path))


def trace_graph(exported: Exported, sampling: Sampling, **how: Any) -> Any:
    """The graph of a sampler, as jax2onnx returns it. how: arguments of its `to_onnx`."""
    sample, inputs = sampler(exported, sampling), abstract_inputs(exported, sampling, BATCH)
    count = len(inputs) if draws_noise(exported, sampling) else len(inputs) - 1
    with silenced():
        from jax2onnx import to_onnx

        return to_onnx(
            lambda *given: sample(*given),
            inputs[:count],
            model_name="sampler",
            input_names=[*INPUTS[:count]],
            output_names=list(OUTPUTS),
            **how,
        )


@contextlib.contextmanager
def silenced():
    """Hides what jax2onnx logs about parts of it that do not concern a graph."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def loading(exported: Exported, sampling: Sampling) -> str:
    """How to run the graph, as Markdown."""
    classes = exported.config.data.num_classes
    meaning = (
        "pictures in [-1, 1], not cut"
        if exported.experiment.space.image
        else exported.experiment.space.name
    )
    shape = ", ".join(map(str, exported.experiment.space.shape))
    draws = draws_noise(exported, sampling)
    return LOADING.format(
        file=FILE,
        shape=shape,
        labels=", ".join(str(k % classes) if classes else "-1" for k in range(4)),
        draws=DRAWS.format(steps=sampling.steps, shape=shape) if draws else "",
        inputs=", ".join(f'"{name}": {name}' for name in INPUTS[: 3 if draws else 2]),
        meaning=meaning,
        steps=sampling.steps,
        guidance=sampling.guidance_scale,
        null=" Label -1 is the null class." if classes else " It reads no labels.",
    )

"""The sampler of a run as an ONNX graph, by jax2onnx.

    noise [B, ...] float32, labels [B] int32  ->  samples [B, ...] float32

The graph has the parameters, the steps and the guidance of one sampler. B is free. Samples of a
network on latents are decoded, and no samples are cut to [-1, 1]. Everything is float32.

A sampler that draws noise between its steps has no graph, since ONNX has not JAX's random numbers.
"""

import contextlib
import importlib.util
import io
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr

from fewstep.objectives.stages import check_sampling_steps
from fewstep.samplers.grids import named_steps
from fewstep.training.codecs import network_codec
from fewstep.training.experiment import rebuild
from fewstep.training.exports.exported import Contents, Exported

FILE = "sampler.onnx"
INPUTS, OUTPUTS = ("noise", "labels"), ("samples",)
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
samples = session.run(None, {{{inputs}}})[0]  # {meaning}
```

The graph samples in {steps} step(s) at guidance {guidance:g}, with any number of rows.{null} Large
parameters are in a second file, `{file}.data`, which must lie beside it."""

Sampler = Callable[[jax.Array, jax.Array], jax.Array]


def onnx_contents(exported: Exported) -> Contents:
    """The graph of a run's sampler.

    Raises ValueError for a run that does not sample, or not in these steps, for a sampler that
    draws noise, and without jax2onnx.
    """
    check_installed()
    if exported.experiment.objective.reconstructs:
        raise ValueError(
            f"--format=onnx is for samplers, and {exported.config.method} reconstructs images; use "
            "--format=safetensors"
        )
    stages, steps = exported.experiment.objective.stages, exported.sampling_steps
    with named_steps(f"--steps={steps}"):
        check_sampling_steps(stages, exported.step, (steps,))
        check_draws_nothing(exported)
    return Contents({FILE: partial(save_graph, exported=exported)}, loading(exported))


def check_installed() -> None:
    """Raises ValueError without jax2onnx."""
    if importlib.util.find_spec("jax2onnx") is None:
        raise ValueError(f"--format=onnx needs jax2onnx; install it by: {INSTALL}")


def sampler(exported: Exported) -> Callable[..., jax.Array]:
    """(noise, labels, keys) -> samples, decoded if the run has a codec."""
    config = exported.config.copy_and_resolve_references()
    config.model.update({name: value for name, value in PLAIN.items() if name in config.model})
    objective = rebuild(config, "the run").objective
    params = jax.tree.map(jnp.asarray, exported.params)
    codec = None if exported.codec is None else network_codec(config)

    def sample(noise: jax.Array, labels: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        x = objective.sample(
            params,
            noise,
            {"label": labels},
            keys,
            steps=exported.sampling_steps,
            guidance_scale=exported.guidance_scale,
        )
        return x if codec is None else codec.decode(exported.codec.params, x)

    return sample


def check_draws_nothing(exported: Exported) -> None:
    """Raises ValueError if the sampler uses random keys."""
    noise, labels = abstract_inputs(exported, 1)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    traced = jax.make_jaxpr(sampler(exported))(noise, labels, keys).jaxpr
    used = dce_jaxpr(traced, [True] * len(traced.outvars))[1]
    if used[-1]:
        raise ValueError(
            f"--format=onnx: {exported.config.method} draws noise between its "
            f"{exported.sampling_steps} sampling steps, and a graph has no random numbers; export "
            "one step, by --steps=1, or a sampler without noise"
        )


def abstract_inputs(exported: Exported, rows: int | str) -> list[jax.ShapeDtypeStruct]:
    """Shapes of noise and labels."""
    shape = (rows, *exported.experiment.space.shape)
    return [jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((rows,), jnp.int32)]


def save_graph(path: Path, exported: Exported) -> None:
    """Trace the sampler and write its graph."""
    sample = sampler(exported)
    with silenced():
        from jax2onnx import to_onnx

        to_onnx(
            lambda noise, labels: sample(noise, labels),
            abstract_inputs(exported, BATCH),
            model_name="sampler",
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            return_mode="file",
            output_path=str(path),
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


def loading(exported: Exported) -> str:
    """How to run the graph, as Markdown."""
    classes = exported.config.data.num_classes
    meaning = (
        "pictures in [-1, 1], not cut"
        if exported.experiment.space.image
        else exported.experiment.space.name
    )
    return LOADING.format(
        file=FILE,
        shape=", ".join(map(str, exported.experiment.space.shape)),
        labels=", ".join(str(k % classes) if classes else "-1" for k in range(4)),
        inputs=", ".join(f'"{name}": {name}' for name in INPUTS),
        meaning=meaning,
        steps=exported.sampling_steps,
        guidance=exported.guidance_scale,
        null=" Label -1 is the null class." if classes else " It reads no labels.",
    )

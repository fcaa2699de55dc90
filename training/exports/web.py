"""A web page that draws from a run: its samplers as ONNX graphs, and all that a browser needs.

index.html, page.css, page.js, noise.js   the page (page/ beside this file)
page.json                                 what it reads first: shapes, classes, samplers
network/*.onnx                            a graph for each number of steps and guidance scale
network/parameters.bin                    the large tensors of the graphs, each once
runtime/                                  two files of onnxruntime-web

The graph is the method's own sampler with all its steps. The browser draws the noise of --seeds by
JAX's generator (noise.js) and rounds to bytes, so its pictures are those of --mode=sample, up to
the rounding of float32.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import jax

from fewstep.files import replace_file, write_json
from fewstep.training.exports.exported import Contents, Exported, data_name
from fewstep.training.exports.onnx import (
    Sampling,
    check_exportable,
    check_sampling,
    draws_noise,
    trace_graph,
)
from fewstep.training.generate import SAMPLES, STREAM_SEED
from fewstep.training.state import named_key

# What the page offers, where the method takes it: steps, and guidance scales beside the run's own.
STEPS = (1, 2, 4)
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
PAGE = Path(__file__).with_name("page")
PAGE_FILES = ("index.html", "page.css", "page.js", "noise.js")
SETTINGS, NETWORK, PARAMETERS = "page.json", "network", "parameters.bin"
RUNTIME = "runtime"
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
# Where `npm install onnxruntime-web` puts its files, below a folder that a user may name.
PLACES = ("node_modules/onnxruntime-web/dist", "onnxruntime-web/dist", "dist", "")
INSTALL = "npm install onnxruntime-web"
LARGE = 1024  # bytes of a tensor that graphs share
LOADING = """\
A browser needs a server for these files, any one that serves a folder:

```
python -m http.server --directory FOLDER
```

FOLDER is this folder; open http://localhost:8000. All is computed in the browser, and nothing comes
from other places. Seed k has the noise of `--seeds=k`. {runtime} runs the graphs, and is MIT
licensed (https://onnxruntime.ai)."""


def web_contents(exported: Exported) -> Contents:
    """The page of a run.

    Raises ValueError without the files of onnxruntime-web, for samples that are no pictures, and
    for steps or a guidance scale that the run does not sample in.
    """
    runtime = find_runtime(exported.runtime)
    if exported.experiment.space.image is None:
        raise ValueError(
            f"--format=web shows pictures, and this run makes {exported.experiment.space.name}; "
            "use --format=onnx"
        )
    check_exportable(exported, "web")
    samplings = offered(exported)
    files: dict[str, Callable[[Path], None]] = {
        **{name: partial(copy_file, PAGE / name) for name in PAGE_FILES},
        SETTINGS: partial(write_json, content=settings(exported, samplings)),
        **network_files(exported, samplings),
        **{f"{RUNTIME}/{name}": partial(copy_file, runtime / name) for name in RUNTIME_FILES},
    }
    return Contents(files, LOADING.format(runtime="onnxruntime-web"))


def find_runtime(folder: Path | None) -> Path:
    """The folder below --runtime with the files of onnxruntime-web. Raises ValueError."""
    if folder is None:
        raise ValueError(
            "--runtime is missing: a page takes onnxruntime-web along; type "
            f"`{INSTALL}` in some folder, then --runtime=FOLDER"
        )
    for place in PLACES:
        if all((folder / place / name).is_file() for name in RUNTIME_FILES):
            return folder / place
    raise ValueError(
        f"--runtime={folder} has no {' and '.join(RUNTIME_FILES)} of onnxruntime-web; type "
        f"`{INSTALL}` in that folder"
    )


def offered(exported: Exported) -> list[Sampling]:
    """The steps and scales that the page offers: those asked for, else those that the run takes.

    Raises ValueError for steps or a scale asked for that the run does not sample in.
    """
    steps, own = exported.sampling_steps, exported.guidance_scale
    scales = [own] if exported.guidance_asked else sorted({own, *SCALES})
    found = []
    for sampling in map(Sampling._make, product(steps or STEPS, scales)):
        try:
            check_sampling(exported, sampling)
            found.append(sampling)
        except ValueError:
            if steps and sampling.guidance_scale == own:
                raise
    if not found:
        tried = ", ".join(map(str, STEPS))
        raise ValueError(
            f"--format=web offers {tried} sampling steps, and this run samples in none of them; "
            "name its own, as in --steps=8"
        )
    return found


def settings(exported: Exported, samplings: Sequence[Sampling]) -> dict[str, Any]:
    """What the page reads, as plain JSON values.

    key: of the random stream of --seeds. shape: of noise; picture: of what is shown.
    """
    experiment = exported.experiment
    classes = experiment.num_classes
    key = jax.random.key_data(named_key(jax.random.key(STREAM_SEED), SAMPLES))
    return {
        "title": f"{exported.config.method} on {data_name(exported)}",
        "network": f"{experiment.sample_with} after training step {exported.step}",
        "shape": [*experiment.space.shape],
        "picture": [*experiment.space.example.shape],
        "classes": [*exported.class_names] or [*map(str, range(classes))],
        "key": key.tolist(),
        "guidance": exported.guidance_scale,
        "parameters": PARAMETERS,
        "samplers": [
            {
                "steps": each.steps,
                "guidance": each.guidance_scale,
                "graph": f"{NETWORK}/{graph_name(each)}",
                "draws": draws_noise(exported, each),
            }
            for each in samplings
        ],
    }


def graph_name(sampling: Sampling) -> str:
    """The file of a graph."""
    return f"steps_{sampling.steps}-guidance_{sampling.guidance_scale:g}.onnx"


def network_files(
    exported: Exported, samplings: Sequence[Sampling]
) -> dict[str, Callable[[Path], None]]:
    """The graphs and the file of their tensors; the first that is written traces all."""

    @cache
    def traced() -> tuple[list[Any], bytes]:
        graphs = [trace_graph(exported, each, return_mode="proto") for each in samplings]
        return graphs, share_tensors(graphs)

    def write_graph(path: Path, index: int) -> None:
        replace_file(path, traced()[0][index].SerializeToString())

    return {
        f"{NETWORK}/{PARAMETERS}": lambda path: replace_file(path, traced()[1]),
        **{
            f"{NETWORK}/{graph_name(each)}": partial(write_graph, index=index)
            for index, each in enumerate(samplings)
        },
    }


def share_tensors(graphs: Sequence[Any]) -> bytes:
    """Move the large tensors of graphs to one file beside them; returns its bytes, each once."""
    from onnx import TensorProto
    from onnx.external_data_helper import set_external_data

    content, places = bytearray(), {}
    for tensor in (tensor for graph in graphs for tensor in graph.graph.initializer):
        raw = tensor.raw_data
        if len(raw) < LARGE:
            continue
        place = places.setdefault(hashlib.sha256(raw).digest(), len(content))
        if place == len(content):
            content += raw
        set_external_data(tensor, PARAMETERS, offset=place, length=len(raw))
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    return bytes(content)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file, whole or not at all."""
    replace_file(path, source.read_bytes())

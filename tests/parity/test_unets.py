"""EDM's U-Nets, imported from a file, against PyTorch: the network, its denoiser and its sampler.

Every weight and bias is random, so that no zero hides one. The reference runs in float64. PyTorch's
own pickles are read too: as EDM saves whole modules, and as a state dict.
"""

import pickle
import sys
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.modes.import_weights import import_weights
from fewstep.modes.recorded_run import load_run
from fewstep.modes.request import Request
from tests.parity.transcription import from_torch, randomize, to_torch, torch
from tests.parity.unet_transcription import EDMPrecond, UNet, heun

pytestmark = pytest.mark.parity

SIDE, STEPS, TOLERANCE = 16, 18, 3e-6  # relative to the largest value
# kind: (classes, multipliers, depth, sides with attention)
CASES = {
    "ddpmpp": (10, (2, 2, 2), 2, (8,)),
    "ddpmpp of 64": (0, (1, 2, 2, 2), 1, (8,)),
    "ncsnpp": (0, (1, 2, 2), 1, (8,)),
    "adm": (7, (1, 2, 3), 1, (8, 4)),
}
WIDTHS = {"adm": 64}  # heads of ADM have 64 channels
LEVELS = np.array([0.004, 0.3, 2.0, 70.0], np.float32)


class Saved:
    """A module, pickled as EDM's decorator pickles it: by its state and the source of its class."""

    def __init__(self, one):
        self.one = one

    def __reduce__(self):
        state = {
            **self.one.__dict__,
            "_modules": {name: saved(part) for name, part in self.one._modules.items()},
        }
        source = {"type": "class", "version": 6, "module_src": "raise SystemExit()"}
        described = {**source, "class_name": type(self.one).__name__, "state": state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (described,)


def saved(one):
    """Modules of EDM's code as its decorator pickles them; those of PyTorch as they are."""
    if isinstance(one, torch.nn.ModuleDict):
        for name, part in one._modules.items():
            one._modules[name] = saved(part)
        return one
    return Saved(one)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function that writes a network to a file of each kind and returns its path."""

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("this is only pickled by name")

    function = _reconstruct_persistent_obj
    function.__module__, function.__qualname__ = "torch_utils.persistence", function.__name__
    for name in ("torch_utils", "torch_utils.persistence"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj = function

    def to(kind, net):
        path = tmp_path / f"edm.{kind}"
        if kind == "pt":
            torch.save(net.state_dict(), path)
        else:
            path.write_bytes(pickle.dumps({"ema": saved(net), "loss_fn": None}))
        return path

    return to


def network(case):
    classes, multipliers, depth, sides = CASES[case]
    kind = case.partition(" ")[0]
    model = UNet(kind, SIDE, 3, classes, WIDTHS.get(kind, 16), multipliers, depth, sides)
    return randomize(EDMPrecond(model), seed=1).eval()


def labels_of(classes):
    """Labels of four rows, the last of which has none, and the same one-hot."""
    if not classes:
        return jnp.full(4, -1), None
    labels = np.array([0, classes // 2, classes - 1, -1])
    return jnp.asarray(labels), torch.from_numpy(np.eye(classes)[labels] * (labels >= 0)[:, None])


def relative(ours, theirs):
    theirs = from_torch(theirs)
    assert theirs.std() > 0.1
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize(
    ("case", "kind"), [*((case, "pkl") for case in CASES), ("ddpmpp", "pt"), ("adm", "pt")]
)
def test_an_imported_network_denoises_and_samples_as_edm_does(case, kind, write, tmp_path):
    net = network(case)
    layout = "" if kind == "pkl" else "adm_unet" if case == "adm" else "song_unet"
    given = {"workdir": tmp_path / "run", "layout": layout}
    reference = network(case).double()  # since pickling has changed the modules of `net`
    import_weights(Request(**given, weights=write(kind, net)))
    run = load_run(Request(workdir=tmp_path / "run"))
    model, objective = run.experiment.model, run.experiment.objective
    labels, one_hot = labels_of(run.config.data.num_classes)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((4, SIDE, SIDE, 3)).astype(np.float32)
    x = LEVELS[:, None, None, None] * noise
    with torch.no_grad():
        clock = torch.from_numpy(LEVELS).double().log() / 4
        raw = reference.model(to_torch(noise, torch.float64), clock, one_hot)
        level = torch.from_numpy(LEVELS).double()
        denoised = reference(to_torch(x, torch.float64), level, one_hot)
    condition = {"label": labels}
    time = jnp.asarray(clock.float().numpy())
    found = jax.jit(model.network.apply)(run.params, noise, time, time, condition)
    ends = jax.jit(model.endpoints)(run.params, x, jnp.asarray(LEVELS), condition)
    errors = {"network": relative(found, raw), "denoiser": relative(ends.x_0, denoised)}
    if kind == "pkl":
        with torch.no_grad():
            one_hot = None if one_hot is None else one_hot[2:]
            samples = heun(reference, to_torch(noise[2:], torch.float64), one_hot, STEPS)
        keys, condition = jax.random.split(jax.random.key(0)), {"label": labels[2:]}
        drawn = jax.jit(
            lambda params: objective.sample(
                params, noise[2:], condition, keys, steps=STEPS, guidance_scale=1.0
            )
        )(run.params)
        errors["sampler"] = relative(drawn, samples)
    print(f"{case} ({kind}): " + ", ".join(f"{name} {e:.1e}" for name, e in errors.items()))
    assert max(errors.values()) < TOLERANCE

"""Runs training up to its loop, with recorders in place of the functions that it calls."""

import hashlib
import re
from functools import wraps
from itertools import islice
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from fewstep import data
from fewstep.data import Dataset, Pairs, Split
from fewstep.eval import checks as CHECKS
from fewstep.eval import evaluate as EVALUATE
from fewstep.eval import sampling as SAMPLING
from fewstep.models import NETWORKS
from fewstep.modes import job as JOB
from fewstep.modes import retention as RETENTION
from fewstep.modes import train_run as TRAIN
from fewstep.modes.request import Request
from fewstep.training import location as LOCATION
from fewstep.training import sources as SOURCES
from fewstep.training import teacher as TEACHER
from fewstep.training.compiled_step import abstract_state, compile_step
from fewstep.training.sharding import put_batch
from fewstep.training.sources import abstract_batch
from fewstep.training.state import initial_state
from fewstep.training.storage import workdir
from tests.networks import affine_network
from tests.training.runs import small_config

MEASURED_BY = ("features", "weights", "reference", "agreement", "batch_size")


def record_run(patch, folder, method, fields, traced=True):
    """Return what each place of a run receives: {place: texts}. The caller undoes `patch`.

    folder: an empty one; the runs "first" and "second" in it are teachers. traced: whether to look
    at the training step, which takes longest.
    """
    for name in ("first", "second"):
        workdir.start_run(folder / name, small_config("edm"))
    if "teacher" in fields:
        fields = fields | {"teacher": str(folder / fields["teacher"])}
    recorder = Recorder(traced)
    replace_dit(patch, recorder.build_network)
    patch.setattr(data, "load_selection", recorder.load_data)
    patch.setattr(data, "load_copy", recorder.load_copy)
    for module in (LOCATION, TEACHER):
        patch.setattr(module, "restore", recorder)
    patch.setattr(SAMPLING, "batch_sampler", recorder.batch_sampler)
    for name in ("trajectory", "load_measures", "save_evaluation"):
        patch.setattr(EVALUATE, name, getattr(recorder, name))
    patch.setattr(CHECKS, "check_feature_network", lambda *_: None)
    patch.setattr(EVALUATE, "save_comparison", lambda *_: None)
    patch.setattr(TRAIN, "train_network", recorder.train_network)
    patch.setattr(JOB, "check_step", recorder.check_step)
    patch.setattr(RETENTION, "logged_evaluations", recorder.logged_evaluations)
    patch.setattr(SOURCES, "teacher_pairs", recorder.teacher_pairs)
    config = small_config(method)
    config.update_from_flattened_dict(fields)
    TRAIN.train_run(Request(config=config, workdir=folder / "run"))
    return recorder.places()


def replace_dit(patch, build):
    """Make `build` create the networks of configs with a DiT."""

    @wraps(NETWORKS["dit"].build)
    def replacement(*inputs, **fields):
        return build(*inputs, **fields)

    patch.setitem(NETWORKS, "dit", NETWORKS["dit"]._replace(build=replacement))


def make_dataset(image_size, channels, **rules):
    """Return a data set of random images; sizes that are 0 become 8 x 8 x 1."""
    shape = (200, image_size or 8, image_size or 8, channels or 1)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    labels = np.minimum(np.arange(200) % 12, 9).astype(np.int32)  # most have class 9
    return Dataset("made", Split(images, labels), Split(images[:50], labels[50::-1][:50]), 10)


def job_of(**fields):
    """A job of these fields; the others are None."""
    return JOB.Job(**dict.fromkeys(JOB.Job._fields) | fields)


def random_network(shape):
    """Return the affine network with random parameters; its inputs beside x are time and label."""
    network = affine_network()

    def init(key):
        return jax.tree.map(lambda leaf: leaf * jax.random.uniform(key), network.init(key))

    return network._replace(init=init, shape=shape)


class Recorder:
    """Stands in for the functions that a run calls, and keeps their arguments by place."""

    def __init__(self, traced):
        self.notes, self.traced = {}, traced

    def note(self, place, *content):
        """Keep the arguments of a place."""
        self.notes.setdefault(place, []).append(content)

    def note_each(self, place, content):
        """Keep each field of a place as a place of its own."""
        for field, value in content.items():
            self.note(f"{place}.{field}", value)

    def places(self):
        """Return the arguments of each place as a set of texts without memory addresses."""
        return {
            place: {re.sub(r"0x[0-9a-f]+", "", repr(jax.tree.map(digest, note))) for note in notes}
            for place, notes in self.notes.items()
        }

    def build_network(self, shape, num_classes, **fields):
        self.note_each("network", fields | {"shape": shape, "num_classes": num_classes})
        return random_network(shape)

    def load_data(self, asked, writable):
        sizes = {"image_size": asked.image_size, "channels": asked.channels}
        self.note_each("data", {"name": asked.name, "dir": asked.data_dir, **sizes})
        return make_dataset(**sizes)

    def load_copy(self, asked, local_dir):
        self.note("copied.to", local_dir)
        return make_dataset(asked.image_size, asked.channels)

    def has_checkpoint(self, folder):
        """Whether the folder has a run; those that are recorded here count as saved."""
        return workdir.is_run(folder)

    def saved_step(self, folder, step=None):
        return 5 if step is None else step

    def read_record(self, folder, step=None):
        return {"step": self.saved_step(folder, step), "fingerprints": {}, "config": {}}

    def restore_network(self, folder, name, abstract, step):
        self.note_each("teacher", {"folder": folder.name, "network": name, "step": step})
        return jax.tree.map(lambda leaf: jnp.ones(leaf.shape), abstract), step

    def teacher_pairs(self, folder, taught, params, mesh, **how):
        self.note_each("pairs", how | {"params": params})
        images = np.zeros((how["count"], *taught.space.shape), np.float32)
        return Pairs(images, images, np.arange(how["count"], dtype=np.int32))

    def batch_sampler(self, objective, shape, mesh, **how):
        self.note_each("sampler", how | {"mesh": dict(mesh.shape), "shape": shape})

        def sample(params, indices, labels):
            if isinstance(indices, np.ndarray):  # not under tracing
                self.note_each("samples", {"network": params, "labels": labels})
            return jnp.zeros((len(indices), *shape))

        return sample

    def trajectory(self, config, **how):
        self.note_each("way", how)
        return lambda params: self.note("way.network", params)

    def load_measures(self, fields, dataset, *, space, mesh, root, read_only, **how):
        used = {name: fields[name] for name in MEASURED_BY} | {"shape": space.example.shape}
        self.note_each("measures", used | how | {"mesh": dict(mesh.shape), "root": root.name})

    def save_evaluation(self, folder, result, space, **shown):
        self.note_each("results", {name: result[name] for name in ("data", "images_seen")})
        self.note_each("results", result["protocol"]["sampling"])

    def logged_evaluations(self, folder):
        return {2: {"frechet_1": 3.0}}

    def check_step(self, experiment, config, mesh, frozen, dataset):
        self.shape = experiment.space.shape
        state = abstract_state(experiment.objective, experiment.optimizers, 0, frozen, mesh)
        return state, None

    def train_network(self, training, stream, schedule, upkeep, evaluate, **_):
        objective, optimizers, frozen, mesh, seed, batch_size, micro_batches, _ = training
        given = {"seed": seed, "batch_size": batch_size, "micro_batches": micro_batches}
        numbers = given | schedule._asdict() | upkeep.patience._asdict()
        numbers |= {"mesh": dict(mesh.shape), "log_to": upkeep.log_to}
        factors = [
            (optimizer.spike_factor, optimizer.spike_cap) for optimizer in optimizers.values()
        ]
        self.note_each("loop", numbers | {"spikes": factors})
        retention = upkeep.retention
        self.note_each("kept", retention._asdict() | {"scores": retention.scores()})
        create = jax.make_jaxpr(lambda f: initial_state(objective, optimizers, seed, f))
        self.note("start", create(frozen))
        if self.traced:
            step = jax.make_jaxpr(compile_step(objective, optimizers, seed, mesh, micro_batches))
            state = abstract_state(objective, optimizers, seed, frozen, mesh)
            batch = abstract_batch(objective, batch_size, self.shape)
            self.note("step", step(state, frozen, batch))
        for batch in islice(stream.batches(1), 2):
            self.note("host", batch)
            self.note("images", stream.complete(put_batch(batch, mesh)))
        # Names stand in for networks.
        networks, followers = (
            {name: name for name in part} for part in (objective.players, objective.followers)
        )
        state = SimpleNamespace(step=20, networks=networks, followers=followers)
        evaluate(state)
        return state


def digest(leaf):
    """Return shape and hash of an array; anything else unchanged."""
    if not isinstance(leaf, np.ndarray | jax.Array):
        return leaf
    return leaf.shape, hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()[:8]

"""Writes folders of evaluated runs without training: the samples are noisy digits."""

import json
import os
from functools import cache

import numpy as np
from sklearn.datasets import load_digits

from fewstep.eval.metrics.protocol import Protocol
from fewstep.eval.report.evaluation import sample_source
from fewstep.eval.report.results import save_results
from fewstep.files import write_json
from fewstep.training.storage.seal import write_sealed

STEPS = (1, 2, 4, 8, 128)
# Reading the digits takes 20 ms, and a page of six methods needs them 600 times.
digits_once = cache(load_digits)
LABELS = np.resize(np.arange(10), 100)
WARNING = "1,000 samples are few: values are biased upwards"
MEASUREMENT = {
    "features": "classifier",
    "weights": "9c0f5a7be1d2" + 52 * "0",
    "published_weights": False,
    "preprocessing": "x / 127.5 - 1",
    "rounding": "127.5 (x + 1), to the nearest integer",
    "samples": 1000,
    "labels": "every class in turn",
    "reference": "digits, all images",
    "reference_sha256": "77aa01" + 58 * "0",
    "version": 1,
}
REAL = {"frechet": 0.34, "agreement": 0.985}
# method -> Frechet distance at one step, exponent of its fall with steps
METHODS = {
    "flow matching": (5.7, 0.75),
    "shortcut": (1.1, 0.25),
    "cd": (0.41, 0.08),
    "ect": (0.55, 0.12),
    "sim": (0.38, 0.0),
    "mean flow": (0.9, 0.2),
}


def metrics_at(frechet, steps):
    """All metrics of an evaluation, derived from its Frechet distance."""
    return {
        "frechet": frechet,
        "agreement": 1.0 - 0.02 * frechet,
        "inception_score": 9.6 - frechet,
        "kernel": 0.001 * frechet,
        "kernel_error": 0.0002,
        "precision": 0.9 - 0.05 * frechet,
        "recall": 0.8 / (1.0 + frechet),
        "density": 1.0 - 0.1 * frechet,
        "coverage": 0.95 - 0.08 * frechet,
        "closer": 0.01 + 0.001 * steps / 128,
    }


def config_of(method, seed, **fields):
    """The config in a run's folder, with the fields that a page reads."""
    return {
        "method": method,
        "seed": seed,
        "steps": 3000,
        "batch_size": 128,
        "objective": {"name": "objective"},
        "optimizer": {"schedule": "constant", "learning_rate": 1e-3},
        "data": {"name": "digits"},
        "evaluate": {
            "features": "classifier",
            "weights": "",
            "reference": "all",
            "num_samples": 1000,
        },
        **fields,
    }


def log_rows(method, seed, frechet):
    """The rows of metrics.jsonl: one in 50 steps, and one for the evaluation."""
    rng, player = np.random.default_rng(seed), "fake_score/" if method == "sim" else ""
    rows = []
    for step in range(50, 3001, 50):
        loss = 0.1 * frechet + 0.8 * np.exp(-step / 600) + 0.02 * rng.random()
        levels = {f"{player}loss_noise_{i}": loss * (2.0 - i / 5) for i in range(8)}
        rows.append({"step": step, f"{player}loss": loss, **levels, "images_per_second": 6400.0})
        if player:
            rows[-1] |= {"generator/loss": 2.0 + loss, "sample_std": 0.5 + loss / 9}
        if step % 1000 == 0:
            rows.append({"step": step, "evaluate/frechet_1": frechet * (1 + 3000 / step)})
    return rows


def evaluated_run(
    folder,
    method="cd",
    seed=0,
    *,
    frechet=0.5,
    fall=0.1,
    steps=STEPS,
    measurement=MEASUREMENT,
    sampling=(),
    config=(),
    rows=None,
    labels=LABELS,
):
    """Writes the folder of a run that was evaluated once, and returns it."""
    write_json(folder / "config.json", config_of(method, seed, **dict(config)))
    rows = log_rows(method, seed, frechet) if rows is None else rows
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for count in steps:
        evaluate(folder, method, seed, frechet, fall, count, measurement, dict(sampling), labels)
    return folder


def evaluate(folder, method, seed, frechet, fall, steps, measurement, sampling, labels):
    """Writes one result and its samples."""
    protocol = Protocol(
        measurement,
        {
            "method": method,
            "network": "ema_0.999",
            "step": 3000,
            "sampler": "heun",
            "steps": steps,
            "guidance_scale": 1.0,
            "seed": seed,
            **sampling,
        },
    )
    result = {
        "id": protocol.id,
        "metric": protocol.metric,
        "data": "digits",
        "images_seen": 128 * protocol.sampling["step"],
        "protocol": protocol._asdict(),
        "metrics": metrics_at(frechet * steps**-fall, steps) if measurement else {},
        "real": REAL if measurement else {},
        "warnings": [WARNING] if measurement else [],
    }
    if not measurement:
        result["skipped"] = "metrics: the data set digits is not here"
    path = folder / "eval" / f"{protocol.id}.json"
    x = noisy_digits(labels, 0.3 * frechet * steps**-fall, seed)
    way = np.concatenate(
        [noisy_digits(labels[:1], level, seed) for level in np.linspace(2, 0, 9) ** 2]
    )
    save_evaluation(path, result, x=x, y=labels, way=way)
    # Files of one evaluation are written one after the other; a clock may not tell them apart.
    newest = max(p.stat().st_mtime_ns for p in path.parent.glob("*.json"))
    os.utime(path, ns=(newest + 1, newest + 1))


def save_evaluation(path, result, **samples):
    """Writes a result and its samples."""
    write_sealed(path.with_suffix(".npz"), sample_source(result), **samples)
    save_results(path, result)


def noisy_digits(labels, noise, seed):
    """Real digits of these labels with noise of the deviation `noise`: uint8 [N, 8, 8, 1]."""
    digits = digits_once()
    first = [np.flatnonzero(digits.target == label)[i // 10] for i, label in enumerate(labels % 10)]
    images = digits.images[first] / 8.0 - 1.0
    images = images + noise * np.random.default_rng(seed).normal(size=images.shape)
    return np.clip(127.5 * (images + 1.0), 0, 255).astype(np.uint8)[..., None]


def six_methods(folder, seeds=(0, 1)):
    """Writes runs of six methods with these seeds, at five numbers of steps; returns folders."""
    folders = []
    for method, (frechet, fall) in METHODS.items():
        for seed in seeds:
            own = frechet * (1.0 + 0.12 * seed)
            name = f"{method.replace(' ', '_')}_{seed}"
            folders.append(evaluated_run(folder / name, method, seed, frechet=own, fall=fall))
    return folders

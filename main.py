"""Train, evaluate and sample few-step generative models.

    python main.py --config=configs/digits.py:shortcut --workdir=runs/digits       (train)
    python main.py --mode=sample --workdir=runs/digits --steps=1 --num=64 --out=samples.npz

Short on purpose: a mode reads flags, calls the functions that do the work and prints what they
found. Bad input ends in one or two lines on standard error and exit code 2.
"""

import sys
from collections.abc import Callable

from absl import app, flags
from ml_collections import config_flags

from eval import modes

MODES: dict[str, Callable[..., None]] = {
    "train": modes.train,
    "evaluate": modes.evaluate,
    "sample": modes.sample,
    "prepare": modes.prepare,
    "describe": modes.describe,
    "report": modes.report,
}

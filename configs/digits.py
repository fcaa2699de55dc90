"""Scikit-learn's 8 x 8 digits: the embedded data set, on which every method trains in minutes.

python main.py --config=configs/digits.py:shortcut --workdir=runs/digits_shortcut
python main.py --config=configs/digits.py:flow_matching --workdir=runs/digits_flow_matching

A teacher, then its student. edm and flow_matching teach cd, progressive and lcm, and sim, sid,
diff_instruct and dmd, which read no images; trigflow teaches scd too, and ect may start from any.
A student takes path, prediction, data and network from its teacher. ct, ict and sct need none:

python main.py --config=configs/digits.py:edm --workdir=runs/digits_edm
python main.py --config=configs/digits.py:cd --config.teacher=runs/digits_edm \
    --workdir=runs/digits_cd

A run takes 10 to 20 minutes of one CPU core. Distances on a classifier's features (1,000 samples;
two halves of the real images: 2.50) in 1 / 4 / 128 sampling steps: flow_matching 44.0 / 4.91 /
1.52, shortcut 5.47 / 2.05 / 1.62, cd 2.13 / 1.97, sim 1.61. docs/figures.md has all methods.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fewstep.configs import base, methods, short_runs


def get_config(method: str = "shortcut") -> ConfigDict:
    """1,437 training images of 10 classes; a DiT of 0.7 M parameters on 16 tokens."""
    config = methods.choose(base.config(), method)
    config.steps = 3000
    config.batch_size = 128
    config.data.name = "digits"
    methods.network(config, size="micro", patch_size=2)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.checkpoint.every = 1000
    # Open, since a small step may be shorter than its dispatch (training/cost/choice.py).
    config.steps_per_dispatch, config.data.on_device = placeholder(int), placeholder(bool)
    config.evaluate.features, config.evaluate.agreement = "classifier", True
    config.evaluate.reference = "all"
    config.evaluate.batch_size = 128  # on CPUs a sample costs a quarter less than in batches of 256
    short_runs.short_run(config, sigma_data=0.75)
    if method not in ("ict", "ect"):
        # Noise levels of 64 pixels on a short run: higher and wider than those of 3,072.
        for sampler in short_runs.log_normal_samplers(config):
            sampler.mean, sampler.std = -0.6, 1.6
    return config

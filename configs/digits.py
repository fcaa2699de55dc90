"""Scikit-learn's 8 x 8 digits: the embedded data set, on which every method trains in minutes.

python main.py --config=configs/digits.py:shortcut --workdir=runs/digits_shortcut
python main.py --config=configs/digits.py:flow_matching --workdir=runs/digits_flow_matching

A teacher, then its student (edm for cd and ect, flow_matching for cd_flow, trigflow for scd, ddpm
for lcm; ct, ict and sct need none, and ect starts from nothing without one):

python main.py --config=configs/digits.py:edm --workdir=runs/digits_edm
python main.py --config=configs/digits.py:cd --config.teacher=runs/digits_edm \
    --workdir=runs/digits_cd
"""

from ml_collections import ConfigDict

from configs import base, methods


def get_config(method: str = "shortcut") -> ConfigDict:
    """1,437 training images of 10 classes; a DiT of 0.7 M parameters on 16 tokens."""
    config = methods.choose(base.config(), method)
    config.steps = 3000
    config.batch_size = 128
    config.data.name = "digits"
    config.model.size = "micro"
    config.model.patch_size = 2
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.checkpoint.every = 1000
    if config.prediction.kind == "F":
        # The deviation of these images.
        config.prediction.sigma_data = 0.75
    if config.path.name == "trigflow":
        config.path.sigma_data = 0.75
    if method in ("edm", "trigflow", "sct", "scd"):
        # Noise levels of 64 pixels on a short run: higher and wider than those of 3,072.
        config.objective.time_sampler = base.log_normal(-0.6, 1.6)
    if method == "ddpm":
        config.prediction.kind = "v"  # as lcm needs its teacher to
    if method == "ct":
        # The paper's 151 points and mu_0 = 0.9 are for hundreds of thousands of steps: here the
        # target would trail each of many cells by hundreds of steps, and the samples stay noise.
        config.objective.curriculum.last = 20
        config.objective.initial_decay = 0.5
    if method == "lcm":
        config.objective.curriculum.points = 201
        config.objective.skip = 4
        config.objective.guidance_range = (1.0, 4.0)
        config.objective.guidance_scale = 1.0
    if method in ("sct", "scd"):
        config.objective.tangent_warmup = 500
    if method == "shortcut":
        # A short run: the current network teaches its larger steps sooner than an average of it
        # (README, figures). The default for long runs is the paper's EMA.
        config.objective.target_decay = 0.0
    return config

"""Fashion-MNIST: 60,000 training images of clothes, 28 x 28, 10 classes.

python main.py --mode=prepare --config=configs/fashion_mnist.py
python main.py --config=configs/fashion_mnist.py:shortcut --workdir=runs/fashion_shortcut

A teacher, then its student (edm for cd and ect, flow_matching for cd_flow, trigflow for scd, ddpm
for lcm; ct, ict and sct need none, and ect starts from nothing without one):

python main.py --config=configs/fashion_mnist.py:edm --workdir=runs/fashion_edm
python main.py --config=configs/fashion_mnist.py:cd --config.teacher=runs/fashion_edm \
    --workdir=runs/fashion_cd
"""

from ml_collections import ConfigDict

from configs import base, methods

# The deviation of the training pixels in [-1, 1].
SIGMA_DATA = 0.71
# log(SIGMA_DATA / 0.5): the published noise levels are for data of deviation 0.5.
LOG_LEVEL_SHIFT = 0.35


def get_config(method: str = "shortcut") -> ConfigDict:
    """A DiT of 1.3 M parameters on 49 tokens, sized for a CPU."""
    config = methods.choose(base.config(), method)
    config.steps = 4000
    config.batch_size = 64
    config.data.name = "fashion_mnist"
    config.data.flip = True
    config.model.size = "mini"
    config.model.patch_size = 4
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.checkpoint.every = 1000
    if config.prediction.kind == "F":
        config.prediction.sigma_data = SIGMA_DATA
    if config.path.name == "trigflow":
        config.path.sigma_data = SIGMA_DATA
    drawn = config.objective.get("time_sampler")
    if drawn and drawn.name == "log_normal":
        drawn.mean += LOG_LEVEL_SHIFT
    if method == "ddpm":
        config.prediction.kind = "v"  # as lcm needs its teacher to
    if method == "ct":
        # The paper's 151 points and mu_0 = 0.9 are for hundreds of thousands of steps: here the
        # target would trail each of many cells by hundreds of steps, and the samples stay noise.
        config.objective.curriculum.last = 20
        config.objective.initial_decay = 0.5
    if method == "lcm":
        # As on the digits: 50 steps of DDIM, and guidance that small images bear.
        config.objective.curriculum.points = 201
        config.objective.skip = 4
        config.objective.guidance_range = (1.0, 4.0)
        config.objective.guidance_scale = 1.0
    if method in ("sct", "scd"):
        config.objective.tangent_warmup = 500  # 1/8 of the run; the paper's is 10,000 steps
    if method == "shortcut":
        # A short run: the current network teaches its larger steps sooner than an average of it
        # (README, figures). The default for long runs is the paper's EMA.
        config.objective.target_decay = 0.0
    return config

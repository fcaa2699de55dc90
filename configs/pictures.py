"""A folder of your own pictures, sized for the devices that are there.

    python main.py --config=configs/pictures.py:shortcut --config.data.name=folder:PATH \
        --workdir=runs/mine

PATH is a folder or .zip, with a sub-folder for each class if there are classes (docs/data.md).
Pictures become squares of 32 pixels; set --config.data.image_size=64 for larger ones. The size and
the patches of the network, batch, micro-batches, number of steps and learning rate follow from the
size and number of pictures and from the devices (training/cost/choice.py). The run prints and
records them. Set any of them to choose it yourself, and --config.data.flip=True if mirrored
pictures are as good.

A teacher, then its student (edm for cd and ect, flow_matching for cd_flow and progressive, trigflow
for scd, ddpm for lcm; sim, sid, diff_instruct and dmd have an edm teacher, sim_flow etc. a
flow_matching one, and read no pictures):

    python main.py --config=configs/pictures.py:edm --config.data.name=folder:PATH \
        --workdir=runs/mine_edm
    python main.py --config=configs/pictures.py:cd --config.data.name=folder:PATH \
        --config.teacher=runs/mine_edm --workdir=runs/mine_cd
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fewstep.configs import base, methods, short_runs

# Methods on other paths whose losses differentiate the network forwards.
FORWARD = ("mean_flow", "improved_mean_flow", "parameter_matching", "genie")
SIGMA_DATA = 0.5  # of photographs in [-1, 1], as published methods assume


def get_config(method: str = "shortcut") -> ConfigDict:
    """Leaves open what follows from the pictures and the devices."""
    config = base.config()
    config.evaluate.steps = (1, 4, 32)  # methods of a few steps have their own
    config = methods.choose(config, method)
    config.data.name = "folder:"
    config.data.image_size = 32
    config.data.channels = 3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.clip_norm = 1.0
    config.checkpoint.every = 500
    config.evaluate.every = 1000
    config.evaluate.features, config.evaluate.num_samples = "none", 64  # only draws samples
    config.steps, config.optimizer.learning_rate = placeholder(int), placeholder(float)
    short_runs.short_run(config, SIGMA_DATA)
    config.batch_size, config.micro_batches = placeholder(int), placeholder(int)
    config.evaluate.batch_size = placeholder(int)
    config.steps_per_dispatch, config.data.on_device = placeholder(int), placeholder(bool)
    methods.network(config, patch_size=placeholder(int), size="auto", dtype="auto")
    # Fused attention cannot be differentiated forwards.
    if config.path.name != "trigflow" and method not in FORWARD:
        methods.network(config, attention="auto")
    return config

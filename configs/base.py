"""Every field of a config, its default, unit and meaning. A config file sets only what differs.

    config = base.config()                    all fields, without model inputs of a method
    config.objective = base.shortcut()        the fields of one method

Any field can be set on the command line: --config.optimizer.learning_rate=1e-3. None stands for the
default of the function that takes the field.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def config() -> ConfigDict:
    """All fields but those of the method."""
    return ConfigDict(
        {
            "seed": 0,  # of everything random: parameters, data order, noise
            "steps": 100_000,  # training steps in all; a resumed run goes on to this number
            "batch_size": 256,  # images per step over all devices
            "debug": False,  # shrink to a run of about a minute on one device
            "teacher": "",  # WORKDIR[@STEP] of the run that teaches; "" for methods without one
            "data": {
                "name": "digits",  # digits, fashion_mnist, folder:PATH, or a TFDS image data set
                "dir": "",  # where prepared data lie; "" is $FEWSTEP_DATA or ~/.cache/fewstep
                "image_size": 0,  # pixels per side; 0 is the data set's own
                "channels": 0,  # 1 or 3; 0 is the data set's own
                "num_classes": -1,  # 0 trains without labels; -1 is the data set's own
                "flip": False,  # mirror images at random, left to right
            },
            "model": {
                "name": "dit",
                "size": "B",  # S, B, L, XL; for CPUs nano, micro, mini, tiny (models/dit.py)
                "patch_size": 2,  # pixels (or latents) per side of a token
                "second_time": "none",  # none, time (s), interval (t - s), step_size (-log2(t - s))
                "guidance_input": False,  # whether the network is told the guidance scale
                "time_scale": 1000.0,  # t is multiplied by it before the sinusoids
                "dropout": 0.0,  # probability, in the blocks
                "dtype": "float32",  # float32 or bfloat16 inside the network
                "remat": False,  # recompute activations in the backward pass: less memory
            },
            "path": {
                "name": "linear",  # linear, vp_cosine, vp_ddpm, ve, trigflow
                "sigma_data": placeholder(float),  # trigflow: deviation of the data
                "sigma_min": placeholder(float),  # ve: smallest noise level
                "sigma_max": placeholder(float),  # ve: largest noise level
                "beta_min": placeholder(float),  # vp_ddpm: noise rate at t = 0
                "beta_max": placeholder(float),  # vp_ddpm: noise rate at t = 1
            },
            "objective": {},
            "optimizer": {
                "name": "adamw",  # adamw, adam, radam
                "learning_rate": 1e-4,
                "schedule": "constant",  # constant, or to zero: cosine, linear
                "warmup_steps": 0,  # updates over which the rate rises from 0
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "weight_decay": 0.0,  # decoupled, on all parameters; adamw only
                "clip_norm": 0.0,  # largest global norm of a gradient; 0 does not clip
            },
            # Fields of `optimizer` that differ for one player: {"fake_score": {"b1": 0.0}}
            "player_optimizers": {},
            "ema": {
                "decays": (0.999,),  # one average per decay, named ema_DECAY
                "warmup": True,  # decay at most (1 + step) / (10 + step)
                "power_stds": (),  # power-function averages of this relative width: power_STD
                "sample_with": "",  # network, ema_0.999, ...; "" is the first average, or network
            },
            "mesh": {
                "data": -1,  # devices that share the batch; -1 takes what is left
                "fsdp": 1,  # devices that also share parameters and optimizer states
            },
            "checkpoint": {
                "every": 5000,  # steps; 0 saves after the last step only
                "keep": 2,  # newest checkpoints that stay; 0 keeps all
            },
            "log": {"every": 50},  # steps averaged in a row of metrics.jsonl
            "evaluate": {
                "every": 0,  # steps; 0 evaluates after the last step only
                "steps": (1, 2, 4, 8, 128),  # numbers of sampling steps; () does not evaluate
                "num_samples": 1000,
                "batch_size": 256,  # images sampled at once, over all devices
                "guidance_scale": placeholder(float),  # form A, 1 is none; None: the method's own
            },
        }
    )


def time_sampler() -> ConfigDict:
    """How t is drawn: uniform, logit_normal(mean, std), log_normal(mean, std)."""
    return ConfigDict({"name": "uniform", "mean": placeholder(float), "std": placeholder(float)})


def flow_matching() -> ConfigDict:
    """objectives/flow_matching.py"""
    return ConfigDict(
        {
            "name": "flow_matching",
            "time_sampler": time_sampler(),
            "label_dropout": 0.1,  # probability of training a row without its label
            "guidance_scale": 1.0,  # when sampling; form A, 1 is none
            "solver": "euler",  # euler, heun
        }
    )


def shortcut() -> ConfigDict:
    """objectives/shortcut.py; needs model.second_time = "step_size"."""
    return ConfigDict(
        {
            "name": "shortcut",
            "max_steps": 128,  # M: step sizes are 1/M, 2/M, 4/M, ..., 1
            "bootstrap_fraction": 0.25,  # share of the batch; paper 1/4, official code 1/8
            "target_decay": 0.999,  # EMA of the bootstrap target; 0 is the network itself
            "target_warmup": True,  # decay at most (1 + step) / (10 + step)
            "time_sampler": time_sampler(),  # of the flow-matching rows
            "label_dropout": 0.1,  # of the flow-matching rows
            "guidance_scale": 1.0,  # trained in at the finest step; form A, 1 is none
        }
    )


def choose(config: ConfigDict, method: str) -> ConfigDict:
    """The config with the fields of a method and the network inputs that it needs."""
    methods = {"flow_matching": flow_matching, "shortcut": shortcut}
    if method not in methods:
        raise ValueError(f"no method {method!r} in this config; it has {', '.join(methods)}")
    config.objective = methods[method]()
    if method == "shortcut":
        config.model.second_time = "step_size"
    return config


def frans_2024(method: str) -> ConfigDict:
    """What Frans et al. 2024 share between data sets: DiT-B/2 on 32 x 32 x 4 latents."""
    chosen = choose(config(), method)
    chosen.data.name = "latents"
    chosen.data.image_size = 32
    chosen.data.channels = 4
    chosen.model.size = "B"
    chosen.model.patch_size = 2
    chosen.model.dtype = "bfloat16"
    chosen.optimizer.learning_rate = 1e-4
    chosen.optimizer.weight_decay = 0.1
    chosen.ema.decays = (0.999,)
    chosen.checkpoint.every = 20_000
    chosen.evaluate.every = 50_000
    if method == "shortcut":
        chosen.objective.bootstrap_fraction = 0.125
    return chosen

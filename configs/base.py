"""Every field of a config, its default, unit and meaning. A config file sets only what differs.

    config = base.config()                       all fields but those of an objective
    config.objective = objectives.shortcut()     those, in configs/objectives.py

`configs/methods.py` puts them together to the methods that a user names.

Any field can be set on the command line: --config.optimizer.learning_rate=1e-3. None stands for the
default of the function that takes the field.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def config() -> ConfigDict:
    """All fields but those of the method."""
    return ConfigDict(
        {
            "method": "",  # how tables and pictures call the run
            "seed": 0,  # of everything random: parameters, data order, noise
            "steps": 100_000,  # training steps in all; a resumed run goes on to this number
            "batch_size": 256,  # images per step over all devices
            "micro_batches": 1,  # parts of a batch that are computed in turn: less memory
            "steps_per_dispatch": 1,  # steps that devices are given at once; the numbers are alike
            # Folder of compiled programs; "" is .compiled beside the run's folder, off keeps none.
            "compilation_cache": "",
            "debug": False,  # shrink to a run of about a minute on one device
            "teacher": "",  # WORKDIR[@STEP] of the run that teaches; "" for methods without one
            "teacher_network": "",  # the network of that run that teaches; "" is its first average
            "start_from_teacher": True,  # the trained networks start as copies of it
            "pairs": {  # noise and the teacher's sample from it, for objective.regression_weight
                "count": 10_000,  # made once, kept in the run's folder
                "steps": 64,  # of the teacher's sampler
            },
            "data": data(),
            "model": model(),
            "path": path(),
            "prediction": {
                "kind": "velocity",  # what the network's output is: velocity, F (EDM), v, eps, x_0
                "sigma_data": placeholder(float),  # F: deviation of the data; None is EDM's 0.5
            },
            "objective": {},
            "optimizer": optimizer(),
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
                # Whether those may be of several slices (TPU slices, hosts of GPUs): slower links.
                "fsdp_across_slices": False,
            },
            "checkpoint": {
                "every": 5000,  # steps; 0 saves after the last step only (of every stage)
                "keep": 2,  # newest checkpoints that stay; 0 keeps all
                "keep_hours": 0.0,  # one of every so many hours stays too; 0 is no such rule
                "keep_best": "",  # the best by this stays: frechet_1, kernel_4, recall_4, ...
                "keep_steps": (),  # these stay, as the last of every stage does
            },
            "watchdog": {  # without a finished step all stacks are written, then the process ends
                "seconds": 60.0,  # that a step may take
                "factor": 10.0,  # times the median step, that one may take if that is more
                "exit_after": 1800.0,  # seconds until the process ends (exit code 77); 0 is never
                # GB/s that a save reaches at least, or the process ends too; 0 is no limit
                "disk_speed": 0.01,
            },
            "log": {"every": 50},  # steps averaged in a row of metrics.jsonl
            "evaluate": {
                "every": 0,  # steps; 0 evaluates after the last step only (of every stage)
                # Numbers of sampling steps, of which a stage is measured at its own; () does not
                # evaluate.
                "steps": (1, 2, 4, 8, 128),
                # What is compared: classifier, pixels, inception, dinov2; none only shows samples.
                "features": "inception",
                "weights": "",  # their file; "" is $FEWSTEP_INCEPTION or $FEWSTEP_DINOV2
                "reference": "train",  # real images: train, test, all, or an .npz (evaluation.md)
                "agreement": False,  # of labels with a classifier that is trained on the data
                "num_samples": 1000,
                "final_samples": 0,  # after the last step, measured beside those; 0 is none more
                "batch_size": 256,  # images sampled at once, over all devices
                "guidance_scale": placeholder(float),  # form A, 1 is none; None: the method's own
            },
        }
    )


def data() -> ConfigDict:
    """The data set."""
    return ConfigDict(
        {
            "name": "digits",  # digits, fashion_mnist, folder:PATH, a TFDS image data set, or none
            "dir": "",  # where prepared data lie; "" is $FEWSTEP_DATA or ~/.cache/fewstep
            # A disk of each host, to which it copies the images before training; "" is none.
            "local_dir": "",
            "image_size": 0,  # pixels per side; 0 is the data set's own
            "channels": 0,  # 1 or 3; 0 is the data set's own
            # Rules by which image files are read (docs/data.md): 1 those of versions without this
            # field, 2 the newest; 0 is a begun run's own, or its teacher's, else the newest.
            "decoding": 0,
            "background": "white",  # under transparent pixels: the name of a color, or #rrggbb
            "unreadable": 0,  # files of a folder that may be unreadable, and are left out
            "num_classes": -1,  # 0 trains without labels; -1 is the data set's own
            "label_shares": "data",  # of classes to make images for: the data's own, or equal
            "flip": False,  # mirror images at random, left to right
            "on_device": False,  # the training images lie on every device, which gathers from them
        }
    )


def model() -> ConfigDict:
    """The network; its inputs and outputs are sized by the data."""
    return ConfigDict(
        {
            "name": "dit",
            "size": "B",  # S, B, L, XL; for CPUs nano, micro, mini, tiny (models/dit.py)
            "patch_size": 2,  # pixels (or latents) per side of a token
            "second_time": "none",  # none, time (s), interval (t - s), step_size (-log2(t - s))
            "guidance_input": False,  # whether the network is told the guidance scale
            "loss_weight": False,  # whether it learns the weight of its loss at each t
            "time_scale": 1000.0,  # t is multiplied by it before the sinusoids
            "adaln_zero": True,  # modulations start at zero, as DiT's; False: Xavier, as shortcut's
            "dropout": 0.0,  # probability, in the blocks
            "dtype": "float32",  # float32 or bfloat16 inside the network
            # xla; cudnn (fused: GPUs, bfloat16, not for sct and scd); auto, cudnn where it can be;
            # chunked (a few queries at a time: less memory everywhere, slower)
            "attention": "xla",
            "remat": False,  # recompute activations in the backward pass: less memory
            "scan": False,  # a loop over stacked blocks: compiled once for all, slower on CPUs
        }
    )


def path() -> ConfigDict:
    """The path from data to noise."""
    return ConfigDict(
        {
            "name": "linear",  # linear, vp_cosine, vp_ddpm, ve, trigflow
            "sigma_data": placeholder(float),  # trigflow: deviation of the data
            "sigma_min": placeholder(float),  # ve: smallest noise level
            "sigma_max": placeholder(float),  # ve: largest noise level
            "beta_min": placeholder(float),  # vp_ddpm: noise rate at t = 0
            "beta_max": placeholder(float),  # vp_ddpm: noise rate at t = 1
        }
    )


def optimizer() -> ConfigDict:
    """How players are updated."""
    return ConfigDict(
        {
            "name": "adamw",  # adamw, adam, radam
            "learning_rate": 1e-4,
            "schedule": "constant",  # constant, or to zero: cosine, linear
            "warmup_steps": 0,  # updates over which the rate rises from 0
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.0,  # decoupled, on all parameters; adamw only
            "clip_norm": 0.0,  # largest global norm of a gradient; 0 does not clip
            # An update is not made if its loss or the norm of its gradient lies this many standard
            # deviations above the mean of the last ones (6 in OLMo 2); 0 makes them all.
            "spike_factor": 0.0,
            "spike_window": 128,  # updates that are looked back on; none is skipped before
            "spike_cap": 10,  # the run ends with an error if it skips more than so many
        }
    )

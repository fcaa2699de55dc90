"""Every field of a config, its default, unit and meaning. A config file sets only what differs.

    config = base.config()                       all fields but those of an objective
    config.objective = objectives.shortcut()     those, in configs/objectives.py

`configs/methods.py` combines them into the methods that a user names.

Any field can be set on the command line: --config.optimizer.learning_rate=1e-3. None takes the
default of the function that reads the field. A field of CHOICES (training/cost/choice.py) that is
None or "auto" is chosen when a run starts, for its images and devices.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def config() -> ConfigDict:
    """All fields except the objective's."""
    return ConfigDict(
        {
            "method": "",  # the run's name in tables and pictures
            "seed": 0,  # of parameters, data order and noise
            "steps": 100_000,  # training steps in total; a resumed run continues up to this number
            "batch_size": 256,  # images per training step, over all devices; None chooses it
            "micro_batches": 1,  # parts of a batch, computed one after another to save memory
            "steps_per_dispatch": 1,  # training steps per dispatch; None chooses it
            # Cache of compiled programs; "" is .compiled beside the run's folder, off disables it.
            "compilation_cache": "",
            "debug": False,  # shrink the run to about a minute on one device
            "debug_keeps": (),  # fields that debug leaves alone; those that the command line sets
            # WORKDIR[@STEP] of the teacher's run; "" for methods without a teacher. What must agree
            # with the teacher is inherited, unless the command line sets it.
            "teacher": "",
            "teacher_network": "",  # which network of that run teaches; "" is its first average
            "start_from_teacher": True,  # trained networks start as copies of the teacher
            # (low, high) of the guidance scales that the teacher takes as an input, or ();
            # inherited.
            "teacher_scales": (),
            # Noise and the teacher's samples from it, for direct, reflow, and regression_weight.
            "pairs": {
                "count": 10_000,  # generated once and kept in the run's folder
                "steps": 64,  # sampling steps of the teacher
            },
            "data": data(),
            "codec": codec(),
            "model": model(),
            "path": path(),
            "prediction": {
                # What the network predicts: velocity, F (EDM), v, eps, x_0; tilt, for densities
                "kind": "velocity",
                "sigma_data": placeholder(float),  # F: deviation of the data; None is EDM's 0.5
            },
            "objective": {},
            "optimizer": optimizer(),
            # Fields of `optimizer` that differ for one player: {"fake_score": {"b1": 0.0}}, or for
            # a head of its network: {"fake_score": {"heads": {"discriminator": {"b1": 0.0}}}}.
            "player_optimizers": {},
            # What the learning rate does if the run is started again with other `steps`, and its
            # schedule depends on them: refuse; extend, hold or rewarm (docs/running.md).
            "continued": {
                "schedule": "refuse",
                "scale": placeholder(float),  # share of learning_rate; rewarm's default is 1
            },
            "ema": {
                "decays": (0.999,),  # one average for each decay, named ema_DECAY
                "warmup": True,  # caps the decay at (1 + step) / (10 + step)
                "power_stds": (),  # power-function averages of these widths, named power_STD
                "sample_with": "",  # network, ema_0.999, ...; "" is the first average, else network
            },
            "mesh": {
                "data": -1,  # devices that split the batch; -1 uses all the rest
                "fsdp": 1,  # devices that also split parameters and optimizer states
                # Whether fsdp may span slices (TPU slices, GPU hosts), whose links are slower.
                "fsdp_across_slices": False,
            },
            "checkpoint": {
                "every": 5000,  # training steps; 0 saves after the last step (of each stage) only
                "keep": 2,  # keeps the newest N checkpoints; 0 keeps all
                "keep_hours": 0.0,  # also keeps one checkpoint per N hours; 0 turns this off
                "keep_best": "",  # also keeps the best by this metric: frechet_1, kernel_4, ...
                "keep_steps": (),  # also saves and keeps these steps; the last of a stage always
            },
            "watchdog": {  # writes all stacks if no step finishes in time, then ends the process
                "seconds": 60.0,  # time limit of a step
                "factor": 10.0,  # or this many times the median step, if longer
                "exit_after": 1800.0,  # seconds until it ends, with exit code 77; 0 is never
                # A save slower than this many GB/s ends the process too; 0 is no limit.
                "disk_speed": 0.01,
            },
            "log": {
                "every": 50,  # training steps averaged in each row of metrics.jsonl
                "to": ("tensorboard",),  # where rows go too: tensorboard, csv, wandb
            },
            "evaluate": {
                "every": 0,  # training steps; 0 evaluates after the last step (of each stage) only
                # Sampling steps to evaluate; a stage is evaluated at its own. () does not evaluate.
                "steps": (1, 2, 4, 8, 128),
                # Features: classifier, pixels, inception, dinov2, points; none only draws samples.
                "features": "inception",
                "weights": "",  # its file of weights; "" is $FEWSTEP_INCEPTION or $FEWSTEP_DINOV2
                # Real images: train, test, all, folder:PATH, or an .npz (evaluation.md).
                "reference": "train",
                "agreement": False,  # with labels, of a classifier trained on the data
                "num_samples": 1000,
                "final_samples": 0,  # a second, larger count after the last step; 0 measures none
                "batch_size": 256,  # images sampled at a time, over all devices
                # On a density, further rows: weighted, hmc, smc (docs/densities.md)
                "rows": (),
                # Form A, 1 is none; None is the method's own. Of several, such as (1.0,2.0), the
                # first counts in logs and tables.
                "guidance_scale": placeholder(object),
            },
        }
    )


def data() -> ConfigDict:
    """The data set."""
    return ConfigDict(
        {
            # digits, fashion_mnist, folder:PATH or folder:A,B, webdataset:PATTERN, hf:PATH,
            # latents:FOLDER, a TFDS name, mixture:NAME, density:NAME, none (docs/data.md)
            "name": "digits",
            "dir": "",  # folder of prepared data; "" is $FEWSTEP_DATA or ~/.cache/fewstep
            # A local disk to which each host copies the images before training; "" copies nothing.
            "local_dir": "",
            "image_size": 0,  # pixels per side; 0 is the data set's own
            "channels": 0,  # 1 or 3; 0 is the data set's own
            # Version of the rules for reading image files (docs/data.md): 1 is the first, 2 the
            # newest; 0 keeps the version of a begun run or of its teacher, else the newest.
            "decoding": 0,
            "background": "white",  # color under transparent pixels: a name or #rrggbb
            # latents:FOLDER: what follows the means: std, logvar, or nothing (draws); "" is what
            # the form of the files says
            "posterior": "",
            "unreadable": 0,  # how many unreadable files of a folder are skipped, not an error
            "num_classes": -1,  # 0 trains without labels; -1 is the data set's own
            "label_shares": "data",  # classes of generated images: in the data's shares, or equal
            "flip": False,  # random horizontal flips
            "on_device": False,  # keep all training images in each device's memory; None chooses it
        }
    )


def codec() -> ConfigDict:
    """Latents, on which the network trains in place of the images (docs/latents.md)."""
    return ConfigDict(
        {
            # "" trains on the images; linear, fitted to them; f4, f7, f8, trained by the method
            # autoencoder; sd, sdxl, sd3, flux, taesd, taesdxl, taesd3, taef1, published
            "name": "",
            "weights": "",  # file of its weights, or RUN[@STEP] of the method autoencoder
            # Per channel, the network sees scale * (latent - shift). () is what the codec was
            # published with, else what brings the latents to mean 0 and deviation 1.
            "scale": (),
            "shift": (),
            "fingerprint": "",  # of its parameters; filled in when a run starts
        }
    )


def model() -> ConfigDict:
    """The network; its inputs and outputs are sized by the data.

    Comments say which networks have a group of fields. A run records those of its own.
    """
    return ConfigDict(
        {
            # dit; song_unet, adm_unet, the U-Nets of EDM; mlp, for points, or for images as points
            # of as many numbers; codec, which only the method autoencoder trains
            "name": "dit",
            # All networks. The first four are what the method needs, unless they are given.
            # none, time (s), interval (t - s), step_size (-log2(t - s))
            "second_time": placeholder(str),
            "guidance_input": placeholder(bool),  # whether the network is told the guidance scale
            "guidance_interval": placeholder(bool),  # and the times between which it is guided
            "loss_weight": placeholder(bool),  # whether it learns the weight of its loss at each t
            "time_scale": 1000.0,  # t is multiplied by it before the sinusoids
            "dtype": "float32",  # float32 or bfloat16 inside the network; auto
            # dit
            "size": "B",  # S, B, L, XL; for CPUs nano, micro, mini, tiny (models/dit.py); auto
            "patch_size": 2,  # pixels (or latents) per side of a token; None chooses it
            "adaln_zero": True,  # modulations start at zero, as DiT's; False: Xavier, as shortcut's
            "dropout": 0.0,  # probability, in the blocks; U-Nets too
            # xla; cudnn (fused: GPUs, bfloat16; not for sct, scd, mean_flow, improved_mean_flow,
            # parameter_matching, genie); auto, cudnn where it can be; chunked (a few queries at a
            # time: less memory everywhere, slower)
            "attention": "xla",
            "remat": False,  # recompute activations in the backward pass: less memory; U-Nets too
            # Rows of one trajectory, which layers between blocks mix; what the method needs.
            "trajectory": placeholder(int),
            "scan": False,  # a loop over stacked blocks: compiled once for all, slower on CPUs
            # mlp; whether it is given the gradient of the log density, of data.name=density:NAME
            "score_input": placeholder(bool),
            # mlp; how soon that gradient fades with noise: 1 / variance of a mode, in units of the
            # density's scale; 0 fades linearly in time
            "score_precision": placeholder(float),
            # mlp; units of a small network for each coordinate, for many dimensions; 0 for none
            "coordinate_width": placeholder(int),
            # mlp; f(-x) = -f(x), for densities with rho(-x) = rho(x), at twice the cost
            "odd": placeholder(bool),
            # mlp, song_unet, adm_unet
            "width": placeholder(int),  # units of a block, or channels of the first convolution
            "depth": placeholder(int),  # blocks; of a U-Net, in each level
            # song_unet, adm_unet
            "multipliers": placeholder(tuple),  # channels of each level over width
            "attention_sides": placeholder(tuple),  # heights of the levels with self-attention
            "variant": placeholder(str),  # song_unet: ddpmpp, ncsnpp; None is ddpmpp
            # codec; which one is trained: f4, f7, f8, sd, sdxl, sd3, flux; None is f4
            "codec": placeholder(str),
        }
    )


UNETS = ("song_unet", "adm_unet")


def time_scale_for(config: ConfigDict, name: str) -> float | None:
    """The time scale for a network that replaces the config's; None is that network's default.

    A U-Net has EDM's, 1, on `ve`, whose clock is log(sigma) / 4. On other paths, whose times are
    fractions, it needs that of the method as a DiT does.
    """
    return config.model.get("time_scale") if name in UNETS and config.path.name != "ve" else None


def use_network(config: ConfigDict, name: str) -> None:
    """Name another network, and leave its fields to its own defaults and to the method."""
    time_scale = time_scale_for(config, name)
    for field, value in config.model.items():
        if value is not None:
            config.model[field] = placeholder(type(value))
    config.model.name, config.model.time_scale = name, time_scale


def path() -> ConfigDict:
    """The path between data and noise."""
    return ConfigDict(
        {
            "name": "linear",  # linear, vp_cosine, vp_ddpm, vp_discrete, ve, trigflow
            "sigma_data": placeholder(float),  # trigflow: deviation of the data
            "sigma_min": placeholder(float),  # ve: smallest noise level
            "sigma_max": placeholder(float),  # ve: largest noise level
            "beta_min": placeholder(float),  # vp_ddpm: noise rate at t = 0
            "beta_max": placeholder(float),  # vp_ddpm: noise rate at t = 1
        }
    )


def optimizer() -> ConfigDict:
    """How the trained networks are updated."""
    return ConfigDict(
        {
            "name": "adamw",  # adamw, adam, radam
            "learning_rate": 1e-4,
            "schedule": "constant",  # constant; cosine or linear, both to zero
            "warmup_steps": 0,  # updates while the rate rises from 0
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.0,  # decoupled, of all parameters with a gradient; adamw only
            "clip_norm": 0.0,  # clips gradients to this global norm; 0 does not clip
            # Skips an update if its loss or gradient norm is this many standard deviations above
            # the mean of recent updates (6 in OLMo 2); 0 never skips.
            "spike_factor": 0.0,
            "spike_window": 128,  # number of recent updates; earlier than that, none is skipped
            "spike_cap": 10,  # ends the run with an error after more skipped updates than this
        }
    )

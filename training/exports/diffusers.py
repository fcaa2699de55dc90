"""A run as diffusers has its parts: transformer, scheduler and autoencoder, each with its config.

diffusers' DiTTransformer2DModel computes our DiT, if the frequencies of its time are those of Meta
(weights/layouts/diffusers_dit.py), which no field of its config sets: the code that loads it must.
The scheduler is one whose steps are those of our solver:

    path, prediction, solver          scheduler
    linear, velocity, euler or ddim   FlowMatchEulerDiscreteScheduler
    vp_discrete, eps or v, ddim       DDIMScheduler with trailing timesteps
"""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from fewstep.diffusion.path import BETAS, FIRST_BETA, LAST_BETA
from fewstep.files import write_json
from fewstep.models.autoencoder import autoencoder
from fewstep.models.codecs import CODECS, NamedCodec
from fewstep.models.dit import SIZES
from fewstep.models.layers import LAYER_NORM_EPSILON
from fewstep.models.tiny_autoencoder import tiny_autoencoder
from fewstep.training.codecs import scaling_of
from fewstep.training.exports.exported import Contents, Exported, check_fields, dit_sizes
from fewstep.training.exports.loading import DiffusersCode, diffusers_code
from fewstep.training.exports.own import save_safetensors
from fewstep.weights.layouts.autoencoder import Structure, write_autoencoder
from fewstep.weights.layouts.diffusers_dit import write_diffusers
from fewstep.weights.layouts.tiny_autoencoder import TinyStructure, write_tiny_autoencoder

FORM = "diffusers"
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
SCHEDULER_CONFIG = "scheduler_config.json"
DDIM, FLOW = "DDIMScheduler", "FlowMatchEulerDiscreteScheduler"
# (path, prediction) -> scheduler, its solvers, and the name that it has for the prediction
SCHEDULERS = {
    ("linear", "velocity"): (FLOW, ("euler", "ddim"), ""),
    ("vp_discrete", "eps"): (DDIM, ("ddim",), "epsilon"),
    ("vp_discrete", "v"): (DDIM, ("ddim",), "v_prediction"),
}


class Part(NamedTuple):
    """A part of a folder of diffusers: the name of its class, its config and its tensors."""

    kind: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Any]


def diffusers_contents(exported: Exported) -> Contents:
    """The folder of a run. Raises ValueError that names what diffusers cannot express."""
    check_expressible(exported)
    scheduler = scheduler_config(exported)
    parts = {"transformer": transformer(exported)}
    if exported.codec is not None:
        parts["vae"] = codec_part(exported)
    files: dict[str, Any] = {
        f"scheduler/{SCHEDULER_CONFIG}": partial(write_json, content=scheduler)
    }
    for name, part in parts.items():
        config = {"_class_name": part.kind, **part.config}
        files[f"{name}/{CONFIG}"] = partial(write_json, content=config)
        files[f"{name}/{WEIGHTS}"] = partial(save_safetensors, tensors=part.tensors)
    code = DiffusersCode(
        scheduler=scheduler["_class_name"],
        codec=parts["vae"].kind if "vae" in parts else "",
        scaling=scaling_of(exported.config),
        null_label=exported.config.data.num_classes,
        noise=float(exported.experiment.model.path.sigma(exported.experiment.model.path.t_max)),
        guidance=exported.guidance_scale,
    )
    return Contents(files, diffusers_code(code))


def check_expressible(exported: Exported) -> None:
    """Raises ValueError unless diffusers has the network, its path and its sampler."""
    config = exported.config
    known = ("denoising",)
    expected = {
        "model.name": ("dit",),
        "model.second_time": ("none",),
        "model.guidance_input": (False,),
        "model.guidance_interval": (False,),
        "model.trajectory": (1,),
        "objective.name": known,
        "path.name": tuple(dict.fromkeys(path for path, _ in SCHEDULERS)),
        "prediction.kind": tuple(kind for path, kind in SCHEDULERS if path == config.path.name),
    }
    check_fields(exported, FORM, expected)
    _, solvers, _ = SCHEDULERS[config.path.name, config.prediction.kind]
    spacing, solver = config.objective.spacing.name, config.objective.solver.name
    time_scale, classes = config.model.time_scale, config.data.num_classes
    channels = config.objective.guided_channels
    faults = {
        f"objective.guided_channels={channels}": channels is not None,
        f"objective.solver.name={solver}": solver not in solvers,
        f"objective.spacing.name={spacing}": spacing != "uniform",
        f"model.time_scale={time_scale:g}": time_scale != round(time_scale)
        or (config.path.name != "linear" and time_scale != BETAS),
        "data.num_classes=0": classes == 0,
    }
    found = [name for name, fault in faults.items() if fault]
    if found:
        raise ValueError(
            f"--format={FORM} cannot express {', '.join(found)}; use --format=safetensors, which "
            "expresses every run"
        )


def transformer(exported: Exported) -> Part:
    """The network as DiTTransformer2DModel."""
    sizes, tree = dit_sizes(exported), dict(exported.params)
    tree.pop("loss_weight", None)
    heads = SIZES[exported.config.model.size].heads
    config = {
        "num_attention_heads": heads,
        "attention_head_dim": sizes.width // heads,
        "in_channels": sizes.channels,
        "out_channels": sizes.channels,
        "num_layers": sizes.depth,
        "sample_size": sizes.side * sizes.patch,
        "patch_size": sizes.patch,
        "num_embeds_ada_norm": sizes.classes,
        "norm_eps": LAYER_NORM_EPSILON,
    }
    return Part("DiTTransformer2DModel", config, write_diffusers(tree, sizes))


def scheduler_config(exported: Exported) -> dict[str, Any]:
    """The config of the scheduler whose steps are those of the run's solver."""
    config = exported.config
    kind, _, prediction = SCHEDULERS[config.path.name, config.prediction.kind]
    if kind == FLOW:
        fields = {"num_train_timesteps": round(config.model.time_scale), "shift": 1.0}
    else:
        fields = {
            "num_train_timesteps": BETAS,
            "beta_start": FIRST_BETA,
            "beta_end": LAST_BETA,
            "beta_schedule": "linear",
            "clip_sample": False,
            "set_alpha_to_one": True,
            "timestep_spacing": "trailing",
            "prediction_type": prediction,
        }
    return {"_class_name": kind, **fields}


def codec_part(exported: Exported) -> Part:
    """The run's codec as an autoencoder of diffusers. Raises ValueError if there is none."""
    name = exported.config.codec.name
    codec, channels = CODECS[name], exported.config.data.channels
    fields = all_fields(codec)
    if codec.build is tiny_autoencoder:
        return tiny_part(exported, TinyStructure(**fields, channels=channels))
    if codec.build is not autoencoder or fields.pop("patch_size") != 1:
        raise ValueError(
            f"--format={FORM} cannot express codec.name={name}; use --format=safetensors, which "
            "expresses every run"
        )
    groups = fields.pop("groups")
    structure = Structure(**fields, channels=channels)
    levels = len(structure.widths)
    config = {
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": structure.widths,
        "layers_per_block": structure.blocks,
        "latent_channels": structure.latent_channels,
        "norm_num_groups": groups,
        "sample_size": exported.config.data.image_size,
        "use_quant_conv": structure.quant_convolutions,
        "use_post_quant_conv": structure.quant_convolutions,
        "mid_block_add_attention": structure.attention,
        **scaling_config(exported),
    }
    tensors = write_autoencoder(exported.codec.params, structure, "diffusers")
    return Part("AutoencoderKL", config, tensors)


def tiny_part(exported: Exported, structure: TinyStructure) -> Part:
    """TAESD as AutoencoderTiny."""
    levels = len(structure.blocks)
    config = {
        "in_channels": structure.channels,
        "out_channels": structure.channels,
        "encoder_block_out_channels": [structure.width] * levels,
        "decoder_block_out_channels": [structure.width] * levels,
        "latent_channels": structure.latent_channels,
        "num_encoder_blocks": structure.blocks,
        "num_decoder_blocks": structure.blocks[::-1],
        **scaling_config(exported),
    }
    tensors = write_tiny_autoencoder(exported.codec.params, structure, "diffusers")
    return Part("AutoencoderTiny", config, tensors)


def scaling_config(exported: Exported) -> dict[str, float]:
    """The scale and the shift of latents, if they are one number for all channels."""
    scale, shift = scaling_of(exported.config)
    if len({*scale}) > 1 or len({*shift}) > 1:
        return {}
    return {"scaling_factor": scale[0], "shift_factor": shift[0]}


def all_fields(codec: NamedCodec) -> dict[str, Any]:
    """The numbers of a codec, with the defaults of the function that builds it."""
    parameters = list(inspect.signature(codec.build).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters} | dict(codec.fields)

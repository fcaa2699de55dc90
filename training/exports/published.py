"""Files of a network under published names: DiT, SiT, REPA, shortcut models and MeanFlow."""

from functools import partial
from typing import Any

from ml_collections import ConfigDict

from fewstep.messages import shell_flags
from fewstep.training.exports.exported import Contents, Exported, check_fields, dit_sizes
from fewstep.training.exports.own import save_safetensors
from fewstep.training.imported import CODEC_OF
from fewstep.training.published import PUBLISHED, published_tensors

# Layouts of a DiT in one file of safetensors. That of diffusers is a folder (diffusers.py), and
# those of EDM are pickles of whole modules.
LAYOUTS = ("dit", "sit", "repa", "shortcut", "mean_flow")


def published_contents(exported: Exported, layout: str) -> Contents:
    """A file of the network by the names of a published layout, which `--mode=import` reads.

    layout: one of LAYOUTS. Raises ValueError for a network that the layout cannot express.
    """
    check_fields(exported, layout, expressible(layout))
    if not exported.config.data.num_classes and layout != "shortcut":
        raise ValueError(
            f"--format={layout} cannot express data.num_classes=0: its file has a table of labels; "
            "use --format=safetensors, which expresses every run"
        )
    objective = exported.experiment.objective
    if objective.players[objective.generator].network.heads:
        raise ValueError(
            f"--format={layout} cannot express the head that {exported.config.method} trains; "
            "export its teacher, or use --format=safetensors, which expresses every run"
        )
    published = PUBLISHED[layout]
    file, tree = f"{layout}.safetensors", dict(exported.params)
    tree.pop("loss_weight", None)
    tensors = published_tensors(layout, tree, dit_sizes(exported))
    flags = {"weights": file, "layout": layout, "workdir": "runs/imported"}
    command = shell_flags("import", **flags, **import_flags(exported.config))
    loading = (
        f"`{file}` has the names and shapes of {published.title} as its authors publish it. With "
        f"Fewstep:\n\n```\npython main.py {command}\n```"
    )
    return Contents(
        {file: partial(save_safetensors, tensors=tensors)}, loading, (published.left_out,)
    )


def import_flags(config: ConfigDict) -> dict[str, Any]:
    """Flags of what a published file does not say of its run: its images, and their codec.

    The weights of the codec are not among them; they are given when the imported run samples.
    """
    flags = {"config.data.image_size": config.data.image_size}
    if config.codec.name:
        flags["config.codec.name"] = config.codec.name
        flags |= {f"config.codec.{name}": tuple(config.codec[name]) for name in ("scale", "shift")}
    elif config.data.channels in CODEC_OF:
        flags["config.codec.name"] = ""  # else the usual one
    return flags


def expressible(layout: str) -> dict[str, tuple]:
    """The values that fields must have, by dotted name, for a network to have a layout."""
    fields = PUBLISHED[layout].fields
    model = fields.get("model", {})
    return {
        "model.name": ("dit",),
        "model.time_scale": (model.get("time_scale", 1000.0),),
        "model.second_time": (model.get("second_time", "none"),),
        "model.guidance_input": (False,),
        "model.guidance_interval": (False,),
        "model.trajectory": (1,),
        "path.name": (fields.get("path", {}).get("name", "linear"),),
        "prediction.kind": (fields.get("prediction", {}).get("kind", "velocity"),),
    }

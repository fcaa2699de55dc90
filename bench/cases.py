"""The methods that are counted and measured, each with the least that a step of it can cost.

Let F be one forward pass of the network on one image; backwards is two more. A step of flow
matching is then 3 F per image.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fewstep.configs import base, methods, objectives
from fewstep.models.conditioning import FREQUENCY_FEATURES
from fewstep.models.dit import SIZES

# Latents of 256 x 256 images, in patches.
IMAGE_SIZE, CHANNELS, PATCH_SIZE, CLASSES = 32, 4, 2, 1000


class Case(NamedTuple):
    """A method with fields. least: F per image, on average over steps. goal: of the ratio."""

    method: str
    least: float
    goal: float
    fields: Mapping[str, Any] = {}


# One evaluation of the fake score for both players.
JOINT = {"objective.joint": True, "objective.fake_time_sampler": objectives.time_sampler("")}
# The ratio of what is compiled to flow matching may lie above that of the least, by the optimizers
# of several players and by what is done beside the network. SiD and SIM are one objective; so are
# CT, iCT and the networks of ECT.
CASES = {
    "flow_matching": Case("flow_matching", 3.0, 1.0),
    "shortcut_8": Case("shortcut", 3.25, 1.10, {"objective.bootstrap_fraction": 0.125}),
    "shortcut_4": Case("shortcut", 3.5, 1.18, {"objective.bootstrap_fraction": 0.25}),
    "ct": Case("ct", 4.0, 1.36),
    "ict": Case("ict", 4.0, 1.36),
    "ect": Case("ect", 4.0, 1.36),
    "cd_euler": Case("cd_flow", 5.0, 1.70, {"objective.teacher_solver": "euler"}),
    "cd_heun": Case("cd_flow", 6.0, 2.04, {"objective.teacher_solver": "heun"}),
    "sct": Case("sct", 4.0, 1.38),
    "sim": Case("sim_flow", 10.0, 3.45),
    "sim_joint": Case("sim_flow", 9.0, 3.1, JOINT),
    "diff_instruct": Case("diff_instruct_flow", 8.0, 2.75),
    "diff_instruct_joint": Case("diff_instruct_flow", 7.0, 2.45, JOINT),
    "dmd": Case("dmd_flow", 8.0, 2.75, {"objective.fake_score_updates": 1}),
}


def case_config(case: Case, size: str, batch_size: int, **fields: Any) -> ConfigDict:
    """A DiT of that size with patches of 2 on 32 x 32 x 4 latents of 1,000 classes, unguided.

    fields: by dotted name, over those of the case.
    """
    config = methods.choose(base.config(), case.method)
    config.batch_size = batch_size
    config.data.image_size, config.data.channels = IMAGE_SIZE, CHANNELS
    config.data.num_classes = CLASSES
    config.model.size, config.model.patch_size = size, PATCH_SIZE
    config.model.dtype = "bfloat16"
    # cuDNN's attention on GPUs; it has no forward derivative, which sct needs.
    config.model.attention = "xla" if case.method == "sct" else "auto"
    config.update_from_flattened_dict({**case.fields, **fields})
    return config


def forward_flops_by_hand(size: str, image_size: int = IMAGE_SIZE) -> float:
    """F: the products of one forward pass of one image, by hand.

    Of N tokens of width w, a block has 12 w^2 N of them in its layers, 2 N^2 w in attention, and
    6 w^2 in the modulation; then there are patches, time embedding and the final layer.
    """
    width, depth, _ = SIZES[size]
    tokens = (image_size // PATCH_SIZE) ** 2
    features = PATCH_SIZE**2 * CHANNELS
    block = 12 * width**2 * tokens + 2 * tokens**2 * width + 6 * width**2
    ends = 2 * tokens * features * width + FREQUENCY_FEATURES * width + width**2 + 2 * width**2
    return 2.0 * (depth * block + ends)

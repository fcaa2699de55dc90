"""The methods to count and measure, each with the least cost of its training step.

F is one forward pass of the network on one image. A backward pass costs 2 F, so a step of flow
matching costs 3 F per image.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fewstep.configs import base, methods, objectives
from fewstep.models.conditioning import FREQUENCY_FEATURES
from fewstep.models.dit import SIZES

# Latents of 256 x 256 images.
IMAGE_SIZE, CHANNELS, PATCH_SIZE, CLASSES = 32, 4, 2, 1000


class Case(NamedTuple):
    """A method and its fields.

    least: cost in F per image, averaged over steps. goal: for the compiled cost, relative to flow
    matching.
    """

    method: str
    least: float
    goal: float
    fields: Mapping[str, Any] = {}


# Methods whose losses differentiate the network forwards.
FORWARD = ("sct", "scd", "mean_flow", "improved_mean_flow", "genie", "parameter_matching")
# The fields with which both players share one evaluation of the fake score.
JOINT = {"objective.joint": True, "objective.fake_time_sampler": objectives.time_sampler("")}
# A goal lies above the ratio of the least costs, because of several players' optimizers and work
# outside the network. SiD and SIM are one objective; so are CT, iCT and the networks of ECT.
CASES = {
    "flow_matching": Case("flow_matching", 3.0, 1.0),
    "shortcut_8": Case("shortcut", 3.25, 1.10, {"objective.bootstrap_fraction": 0.125}),
    "shortcut_4": Case("shortcut", 3.5, 1.18, {"objective.bootstrap_fraction": 0.25}),
    # A quarter of the rows have a tangent, a forward pass; guided targets have one for every row.
    "mean_flow": Case("mean_flow", 3.25, 1.12),
    "mean_flow_guided": Case("mean_flow", 4.25, 1.55, {"objective.guidance_scale": 2.0}),
    # Half of the rows have a tangent; guided targets have two forward passes for every row.
    "improved_mean_flow": Case("improved_mean_flow", 5.5, 1.95),
    "tract": Case("tract", 5.0, 1.70),
    "progressive": Case("progressive", 5.0, 1.70),
    # Four steps of Heun, each of two evaluations, for every row; three terms at the jump's end.
    "ctm_4": Case("ctm", 18.0, 6.2, {"objective.solver_steps": 4}),
    # 16 solver steps for a trajectory of four points, each of which is a row of the network. Its
    # temporal layers come on top.
    "dsno_16": Case("dsno", 28.0, 11.0, {"objective.solver_steps": 16, "model.scan": False}),
    "boot": Case("boot", 9.0, 3.05),
    "moment_matching": Case("moment_matching", 8.0, 2.75),
    # A derivative along parameters costs two forward passes beside the value.
    "parameter_matching": Case("parameter_matching", 9.0, 3.1),
    # A teacher guided for every row, and eight evaluations for an eighth of the rows.
    "guidance": Case("guidance", 5.0, 1.70),
    # A forward pass and a tangent of it, and a head; XLA may keep the forward pass twice.
    "genie": Case("genie", 2.0, 1.05),
    "live_reflow": Case("live_reflow", 4.0, 1.36),
    "reflow": Case("reflow", 3.0, 1.02),
    "direct": Case("direct", 3.0, 1.02),
    "ct": Case("ct", 4.0, 1.36),
    "ict": Case("ict", 4.0, 1.36),
    "ect": Case("ect", 4.0, 1.36),
    "cd_euler": Case("cd_flow", 5.0, 1.70, {"objective.teacher_solver": "euler"}),
    "cd_heun": Case("cd_flow", 6.0, 2.04, {"objective.teacher_solver": "heun"}),
    "lcm": Case("lcm", 6.0, 2.04),
    "sct": Case("sct", 4.0, 1.38),
    "scd": Case("scd", 5.0, 1.75),
    "sim": Case("sim_flow", 10.0, 3.45),
    "sim_joint": Case("sim_flow", 9.0, 3.1, JOINT),
    "diff_instruct": Case("diff_instruct_flow", 8.0, 2.75),
    "diff_instruct_joint": Case("diff_instruct_flow", 7.0, 2.45, JOINT),
    "dmd": Case("dmd_flow", 8.0, 2.75, {"objective.fake_score_updates": 1}),
}


def case_config(case: Case, size: str, batch_size: int, **fields: Any) -> ConfigDict:
    """The config of a DiT with patches of 2 on 32 x 32 x 4 latents of 1,000 classes, unguided.

    fields: by dotted name; they override the case's.
    """
    config = methods.choose(base.config(), case.method)
    config.batch_size = batch_size
    config.data.image_size, config.data.channels = IMAGE_SIZE, CHANNELS
    config.data.num_classes = CLASSES
    config.model.size, config.model.patch_size = size, PATCH_SIZE
    config.model.dtype = "bfloat16"
    # "auto" is cuDNN's attention on GPUs. It has no forward-mode derivative, which these need.
    config.model.attention = "xla" if case.method in FORWARD else "auto"
    config.update_from_flattened_dict({**case.fields, **fields})
    return config


def forward_flops_by_hand(size: str, image_size: int = IMAGE_SIZE) -> float:
    """F: FLOPs of the matrix products in a forward pass of one image, derived by hand.

    With N tokens of width w, a block needs 12 w^2 N multiplications in its layers, 2 N^2 w in
    attention and 6 w^2 in the modulation. Patches, time embedding and final layer add to that.
    """
    width, depth, _ = SIZES[size]
    tokens = (image_size // PATCH_SIZE) ** 2
    features = PATCH_SIZE**2 * CHANNELS
    block = 12 * width**2 * tokens + 2 * tokens**2 * width + 6 * width**2
    ends = 2 * tokens * features * width + FREQUENCY_FEATURES * width + width**2 + 2 * width**2
    return 2.0 * (depth * block + ends)

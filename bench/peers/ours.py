"""Fewstep in a race, as `main.py` runs it: the allocator, the compiled step, the batch sampler."""

import jax

from bench.cases import CASES, case_config
from bench.measure import Program, sampling_program, training_program
from bench.racer import Spec, Work, jax_cost, serve
from fewstep.modes.host_memory import keep_freed_memory
from fewstep.training.cost.compiled import device_bytes


def prepare(spec: Spec) -> Work:
    """The training step or the sampler of a spec."""
    keep_freed_memory()
    fields = {
        "data.image_size": spec["side"],
        "data.channels": spec["channels"],
        "data.num_classes": spec["classes"],
        "model.patch_size": spec["patch"],
        "model.dtype": spec["dtype"],
    }
    if spec["method"] == "shortcut":
        fields["objective.max_steps"] = spec["grid"]
    config = case_config(CASES[spec["case"]], spec["size"], spec["batch"], **fields)
    if spec["kind"] == "train":
        program = training_program(config)
    else:
        program = sampling_program(config, spec["steps"])
    return Work(program.run, jax.block_until_ready, lambda: cost(program))


def cost(program: Program) -> dict:
    """The figures of the compiled program."""
    return jax_cost(program.lower().compile(), device_bytes(program.state))


if __name__ == "__main__":
    serve(prepare)

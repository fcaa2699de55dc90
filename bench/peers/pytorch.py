"""PyTorch in a race, eager and by torch.compile: the network of bench/torch_peer.py."""

import os
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.racer import Spec, Work, serve
from bench.torch_peer import DEVICE, DiT, sampler, training_step
from fewstep.models.dit import DiTSize


def prepare(spec: Spec) -> Work:
    """The training step or the sampler of a spec, with a thread for each core of the process."""
    if hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))

    def make(compiled: bool) -> Any:
        size = DiTSize(spec["width"], spec["depth"], spec["heads"])
        network = DiT(size, spec["side"], spec["channels"], spec["classes"]).to(DEVICE)
        if spec["kind"] == "train":
            return training_step(network, spec["batch"], spec["dtype"], compiled)
        return sampler(network, spec["batch"], spec["steps"], spec["dtype"], compiled)

    def cost() -> dict[str, int]:
        with FlopCounterMode(display=False) as counter:
            make(compiled=False)()
        return {"flops": counter.get_total_flops()}

    wait = torch.cuda.synchronize if DEVICE == "cuda" else lambda _=None: None
    return Work(make(spec["compiled"]), lambda _: wait(), cost)


if __name__ == "__main__":
    serve(prepare)

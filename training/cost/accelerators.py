"""Accelerators by name, alone or as slices and hosts: v5p, v4-32, 8xh100.

The numbers are published by Google Cloud (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e) and
NVIDIA (data sheets, without sparsity; SXM where a GPU comes in several forms).
"""

import re
from typing import NamedTuple

from fewstep.training.construct import look_up

GIB = 2**30
# JAX reserves this share of a GPU at its start, unless XLA_CLIENT_MEM_FRACTION says otherwise
# (docs.jax.dev, GPU memory allocation).
GPU_SHARE = 0.75
# The TPU runtime keeps the rest: its errors report 15.75 of 16 GiB on v5e, 30.75 of 32 on v4.
TPU_SHARE = 0.95


class Accelerator(NamedTuple):
    """One JAX device.

    gib: memory, GiB. tflops: peak of bfloat16 products, TFLOP/s. memory_speed: memory bandwidth,
    GB/s. link_speed: bandwidth to other devices, one way, GB/s. host: devices per host. cores:
    TensorCores per device, which the names of TPU slices count; 0 for GPUs, which have no slices.
    """

    gib: float
    tflops: float
    memory_speed: float
    link_speed: float
    host: int
    cores: int = 0

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU rather than a TPU."""
        return not self.cores

    @property
    def usable(self) -> float:
        """Share of the memory that a program can use."""
        return GPU_SHARE if self.is_gpu else TPU_SHARE

    @property
    def room(self) -> float:
        """Bytes of memory that a program can use."""
        return self.usable * self.gib * GIB

    def peak_flops(self, dtype: str) -> float:
        """FLOP/s of products. JAX computes float32 ones in TF32 on GPUs, in bfloat16 on TPUs."""
        halved = self.is_gpu and dtype == "float32"
        return self.tflops * 1e12 / (2 if halved else 1)


ACCELERATORS = {
    "v4": Accelerator(32, 275, 1200, 300, 4, 2),
    "v5e": Accelerator(16, 197, 819, 200, 8, 1),
    "v5p": Accelerator(95, 459, 2765, 600, 4, 2),
    "v6e": Accelerator(32, 918, 1638, 400, 8, 1),
    "rtx-4090": Accelerator(24, 165, 1008, 32, 8),
    "l4": Accelerator(24, 121, 300, 32, 8),
    "l40s": Accelerator(48, 362, 864, 32, 8),
    "a100-40": Accelerator(40, 312, 1555, 300, 8),
    "a100-80": Accelerator(80, 312, 2039, 300, 8),
    "h100": Accelerator(80, 989, 3350, 450, 8),
    "h200": Accelerator(141, 989, 4800, 450, 8),
    "b200": Accelerator(180, 2250, 8000, 900, 8),
}
# JAX's device_kind -> name. Other forms of a card, such as NVIDIA H100 PCIe, and parts of one (MIG)
# have other peaks and are not listed.
KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA L4": "l4",
    "NVIDIA L40S": "l40s",
    "NVIDIA A100-SXM4-40GB": "a100-40",
    "NVIDIA A100-PCIE-40GB": "a100-40",
    "NVIDIA A100-SXM4-80GB": "a100-80",
    "NVIDIA A100 80GB PCIe": "a100-80",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
}
# Google's other names.
ALIASES = {"v5litepod": "v5e"}
# Devices per virtual machine in slices of v5e or v6e that are larger than a host.
PART_OF_HOST = 4


def accelerator_of(kind: str) -> Accelerator | None:
    """The accelerator of a device_kind, or of its name as in a plan; None if it is unknown."""
    return ACCELERATORS.get(KINDS.get(kind, kind))


class Target(NamedTuple):
    """The hardware of a plan.

    devices: how many; None if only the kind is given. slices: TPU slices, or GPU hosts.
    """

    name: str
    accelerator: Accelerator
    devices: int | None = None
    slices: int = 1

    @property
    def hosts(self) -> int:
        """Hosts or virtual machines; each runs at least one process."""
        devices, (full, cores) = self.devices or 0, self.accelerator[4:]
        return -(-devices // (PART_OF_HOST if cores == 1 and devices > full else full))


def parse_target(text: str) -> Target:
    """The target of a name: h100, 8xh100, v4-32 (16 chips) or 2xv5e-256 (two slices).

    Raises ValueError for a name or number that does not exist.
    """
    count, name, size = re.fullmatch(r"(?:(\d+)x)?(.*?)(?:-(\d+))?", text.lower()).groups()
    if size is not None and f"{name}-{size}" in ACCELERATORS:
        name, size = f"{name}-{size}", None
    name = ALIASES.get(name, name)
    accelerator = look_up(ACCELERATORS, name, "--accelerator")
    if count is None and size is None:
        return Target(name, accelerator)
    if size is not None and accelerator.is_gpu:
        raise ValueError(
            f"--accelerator={text}: only TPUs have slices; {size} GPUs are {size}x{name}"
        )
    if size is None and not accelerator.is_gpu:
        raise ValueError(f"--accelerator={text}: TPUs come as slices; name one, such as {name}-8")
    number = int(count or 1)
    devices = number * slice_devices(text, accelerator, size)
    if devices < 1:
        raise ValueError(f"--accelerator={text} has no devices; give a number above 0")
    slices = -(-number // accelerator.host) if accelerator.is_gpu else number
    if devices % slices:
        raise ValueError(
            f"--accelerator={text}: a mesh needs the same number of devices on each host, and "
            f"hosts have {accelerator.host}; use "
            f"{devices // accelerator.host * accelerator.host}x{name}"
        )
    return Target(name, accelerator, devices, slices)


def slice_devices(text: str, accelerator: Accelerator, size: str | None) -> int:
    """Devices of a slice, or 1 for a GPU. Raises ValueError if slices of this size do not exist."""
    if size is None:
        return 1
    devices, rest = divmod(int(size), accelerator.cores)
    part = min(PART_OF_HOST, accelerator.host)
    if rest or not (devices % part == 0 or (devices == 1 and accelerator.host > part)):
        unit = "TensorCores, 2 per chip" if accelerator.cores == 2 else "chips"
        names = ", ".join(nearest_slices(text, int(size), part * accelerator.cores))
        raise ValueError(
            f"--accelerator={text}: the number counts {unit}, and slices have a multiple of "
            f"{part} chips; use {names}"
        )
    return devices


def nearest_slices(text: str, size: int, step: int) -> list[str]:
    """Names of the slices just below and above a size; their sizes are multiples of step."""
    sizes = {max(size // step, 1) * step, max(-(-size // step), 1) * step}
    return [f"{text.rpartition('-')[0]}-{other}" for other in sorted(sizes)]

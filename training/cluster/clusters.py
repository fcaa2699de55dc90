"""Where the processes of a job meet, from the command line or a cluster's environment variables.

JAX detects clusters too, but reveals what it found only after all processes have joined. So this
module reads the variables of Slurm, Open MPI and TPUs on GKE, by JAX's rules (docs of
jax.distributed.initialize, srun(1), mpirun(1), GKE's and JobSet's docs). JAX detects the others.
"""

import importlib.util
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

# JAX's default ports: one of the last 4096, by the job number; 8482 on TPUs.
JOB_PORTS = range(2**16 - 2**12, 2**16)
TPU_PORT = 8482


class Rendezvous(NamedTuple):
    """Where processes meet.

    address: HOST:PORT, at which process 0 listens. count: processes. index: of this process.
    """

    address: str
    count: int
    index: int


def rendezvous(coordinator: str | None, count: int | None, index: int | None) -> Rendezvous | None:
    """The rendezvous that three flags give; None if none of them is set.

    Raises ValueError if only some are set or a value is impossible.
    """
    values = {"coordinator": coordinator, "num_processes": count, "process_id": index}
    missing = [f"--{name}" for name, value in values.items() if value is None]
    if len(missing) == len(values):
        return None
    if missing:
        raise ValueError(
            f"--coordinator, --num_processes and --process_id go together; {', '.join(missing)} "
            "is missing"
        )
    split_address(coordinator)
    if count < 1 or not 0 <= index < count:
        raise ValueError(
            f"--process_id={index} must be in 0 .. {count - 1}, one of --num_processes={count}"
        )
    return Rendezvous(coordinator, count, index)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of an address. Raises ValueError if it is not HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"--coordinator={address} must be HOST:PORT, such as 10.0.0.1:4321")
    return host.strip("[]"), int(port)


def detect(variables: Mapping[str, str] = os.environ) -> Rendezvous | None:
    """The rendezvous of the Slurm, Open MPI or GKE job that started this process, if one did.

    Raises ValueError that names variables that contradict each other, are missing or should be
    numbers.
    """
    for cluster in (open_mpi, slurm, gke_tpu):
        found = cluster(variables)
        if found is not None:
            host, port, count, index = found
            if variables.get("JAX_COORDINATOR_PORT"):
                port = integer_variable(variables, "JAX_COORDINATOR_PORT")
            host = f"[{host}]" if ":" in host else host
            address = variables.get("JAX_COORDINATOR_ADDRESS") or f"{host}:{port}"
            return rendezvous(address, count, index)
    return None


def slurm(variables: Mapping[str, str]) -> tuple[str, int, int, int] | None:
    """Host, port, count and index of a Slurm task. Process 0 runs on the first node."""
    names = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")
    if any(f"SLURM_{name}" not in variables for name in names):
        return None
    nodes = variables["SLURM_STEP_NODELIST"]
    job, count, index = (
        integer_variable(variables, f"SLURM_{n}") for n in ("JOB_ID", "NTASKS", "PROCID")
    )
    # node1 | node1,node2 | node[001-003,7],other: the first name, or its prefix and first number
    first = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", nodes)
    if first is None:
        raise ValueError(f"SLURM_STEP_NODELIST={nodes} names no node; give --coordinator")
    return first[1] + (first[2] or ""), job_port(job), count, index


def open_mpi(variables: Mapping[str, str]) -> tuple[str, int, int, int] | None:
    """Host, port, count and index of an Open MPI process. Process 0 runs on mpirun's host."""
    uri = variables.get("OMPI_MCA_orte_hnp_uri")
    if uri is None:
        return None
    # 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911, or tcp6://[fe80::1,2620::2]:43370
    found = re.match(r"(\d+)\..*?(?:tcp://([^,:]+)|tcp6://\[([^,\]]+))", uri)
    if found is None:
        raise ValueError(f"OMPI_MCA_orte_hnp_uri={uri} has no address; give --coordinator")
    count, index = (
        integer_variable(variables, f"OMPI_COMM_WORLD_{name}") for name in ("SIZE", "RANK")
    )
    return found[2] or found[3], job_port(int(found[1]) // 2**12), count, index


def gke_tpu(variables: Mapping[str, str]) -> tuple[str, int, int, int] | None:
    """Host, port, count and index of a TPU pod on GKE, numbered slice by slice from 0."""
    workers = variables.get("TPU_PROCESS_ADDRESSES") or variables.get("TPU_WORKER_HOSTNAMES")
    if not workers or "TPU_WORKER_ID" not in variables or not has_libtpu():
        return None
    hosts = workers.split(",")
    slices = integer_variable(variables, "MEGASCALE_NUM_SLICES", "1")
    index = integer_variable(variables, "MEGASCALE_SLICE_ID", "0") * len(hosts)
    first = variables.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]
    return (
        first.split(":")[0],
        TPU_PORT,
        len(hosts) * slices,
        index + integer_variable(variables, "TPU_WORKER_ID"),
    )


def integer_variable(variables: Mapping[str, str], name: str, default: str = "") -> int:
    """A variable as an integer of at least 0. Raises ValueError that names the variable."""
    value = variables.get(name) or default
    if not value.isdecimal():
        raise ValueError(f"{name}={value} must be a number; give --coordinator")
    return int(value)


def has_libtpu() -> bool:
    """Whether JAX would use TPUs."""
    return importlib.util.find_spec("libtpu") is not None


def job_port(job: int) -> int:
    """JAX's port for a job number."""
    return JOB_PORTS[job % len(JOB_PORTS)]

"""Where processes meet, from flags or a cluster's environment variables."""

import pytest

from fewstep.training.cluster import clusters
from fewstep.training.cluster.clusters import detect, rendezvous

SLURM = {"JOB_ID": "4101", "STEP_NODELIST": "n1", "NTASKS": "6", "PROCID": "5", "LOCALID": "1"}
MPI = {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "2"}
MPI_URI = "OMPI_MCA_orte_hnp_uri"
TPU = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}


def slurm(**other):
    return {f"SLURM_{name}": value for name, value in {**SLURM, **other}.items()}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("127.0.0.1:1", None, 0), "--num_processes is missing"),
        ((None, 2, None), "--coordinator, --process_id is missing"),
        (("127.0.0.1", 2, 0), "must be HOST:PORT"),
        (("127.0.0.1:99999", 2, 0), "must be HOST:PORT"),
        (("127.0.0.1:²", 2, 0), "must be HOST:PORT"),
        (("127.0.0.1:1", 2, 2), "--process_id=2 must be in 0 .. 1"),
    ],
)
def test_processes_meet_at_an_address(given, message):
    with pytest.raises(ValueError, match=message):
        rendezvous(*given)
    assert rendezvous(None, None, None) is None
    assert rendezvous("[::1]:1", 2, 1) == ("[::1]:1", 2, 1)
    assert clusters.split_address("[::1]:1") == ("::1", 1)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-0015],host2", "node001"),
        ("node[007,009-015],host2", "node007"),
        ("gpu-a[3]", "gpu-a3"),
    ],
)
def test_a_job_of_slurm_meets_on_its_first_node(nodes, first):
    # JAX's port: 61440 + job number modulo 4096.
    assert detect(slurm(STEP_NODELIST=nodes)) == (f"{first}:61445", 6, 5)


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("1531576320.0;tcp://10.96.0.1,10.148.0.1,10.108.0.1:34911", "10.96.0.1:62624"),
        ("1314521088.0;tcp6://[fe80::b9b:1,2620:10d::2]:43370", "[fe80::b9b:1]:62880"),
    ],
)
def test_a_job_of_open_mpi_meets_where_it_was_started(uri, address):
    assert detect({MPI_URI: uri, **MPI}) == (address, 3, 2)


def test_pods_with_tpus_are_numbered_over_slices(monkeypatch):
    assert detect(TPU) is None  # no libtpu: JAX would use no TPUs
    monkeypatch.setattr(clusters, "has_libtpu", lambda: True)
    assert detect(TPU) == ("a:8482", 2, 1)
    slices = {"NUM_SLICES": "3", "SLICE_ID": "2", "COORDINATOR_ADDRESS": "first:8080"}
    several = TPU | {f"MEGASCALE_{name}": value for name, value in slices.items()}
    assert detect(several) == ("first:8482", 6, 5)


def test_jaxs_own_variables_go_before_and_no_cluster_is_none():
    assert detect({}) is None
    assert detect({"SLURM_JOB_ID": "7"}) is None  # in sbatch's own shell, no task
    assert detect(slurm() | {"JAX_COORDINATOR_PORT": "77"})[0] == "n1:77"
    assert detect(slurm() | {"JAX_COORDINATOR_ADDRESS": "other:78"})[0] == "other:78"


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        (slurm(NTASKS="1"), "5"),
        ({MPI_URI: "7.0;none", **MPI}, MPI_URI),
        (slurm(STEP_NODELIST="[1-2]"), "SLURM_STEP_NODELIST"),
        (slurm(JOB_ID="a"), "SLURM_JOB_ID=a must be a number"),
        (slurm() | {"JAX_COORDINATOR_PORT": "x"}, "JAX_COORDINATOR_PORT=x must be a number"),
        ({MPI_URI: "7.0;tcp://h:1", "OMPI_COMM_WORLD_SIZE": "3"}, "OMPI_COMM_WORLD_RANK= must be"),
    ],
)
def test_variables_that_cannot_be_are_named(variables, named):
    with pytest.raises(ValueError, match=named):
        detect(variables)

"""The launch scripts, run with stand-ins for the programs that they call."""

import os
import string
import subprocess
from pathlib import Path

import pytest
import yaml

from training import exits

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
FLAGS = ["--config=configs/digits.py:edm", "--workdir=/shared/a run"]
# Writes its name and arguments down, one to a line, and ends with the next code of its own.
STAND_IN = """#!/usr/bin/env bash
exec 9>> "$RECORD"; flock 9  # one after the other
printf '%s\\n' "$(basename "$0")" "$@" '' >&9
codes="$CODES/$(basename "$0")"
[ -f "$codes" ] || exit 0
code=$(head -1 "$codes"); sed -i 1d "$codes"
exit "${code:-0}"
"""


@pytest.fixture
def call(tmp_path):
    """call(script, *arguments, codes={program: [exit codes]}, **variables) -> (code, calls)."""
    for name in ("python", "python3.99", "srun", "scontrol", "xpk", "gcloud"):
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)

    def run(script, *arguments, codes=None, **variables):
        record = tmp_path / "record"
        record.write_text("")
        for name, own in (codes or {}).items():
            (tmp_path / "codes").mkdir(exist_ok=True)
            (tmp_path / "codes" / name).write_text("".join(f"{code}\n" for code in own))
        # All that a script finds: what its caller exports, such as PYTHON, is none of it.
        own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RECORD": str(record)}
        own |= {"CODES": str(tmp_path / "codes"), "SLURM_SUBMIT_DIR": str(ROOT)}
        ended = subprocess.run(
            ["bash", LAUNCH / script, *arguments],
            env={**own, **variables},
            capture_output=True,
            text=True,
        )
        calls = [block.splitlines() for block in record.read_text().split("\n\n") if block.strip()]
        return ended.returncode, [[part for part in call if part] for call in calls]

    return run


@pytest.mark.parametrize("script", sorted(p.name for p in LAUNCH.iterdir() if p.suffix != ".yaml"))
def test_scripts_are_shell(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    assert len((LAUNCH / script).read_text().splitlines()) < 60
    assert os.access(LAUNCH / script, os.X_OK)


def test_one_machine_is_one_process_after_the_doctor(call):
    code, calls = call("local.sh", *FLAGS)
    assert code == 0
    assert calls == [
        ["python", "main.py", "--mode=doctor", *FLAGS],
        ["python", "main.py", *FLAGS],
    ]
    code, calls = call("local.sh", *FLAGS, codes={"python": [exits.BAD_INPUT]})
    assert code == exits.BAD_INPUT and len(calls) == 1


def test_scripts_start_the_python_of_their_variable(call):
    for count in ("1", "2"):
        _, calls = call("local.sh", *FLAGS, NPROC=count, PYTHON="python3.99")
        assert {one[0] for one in calls} == {"python3.99"}
    _, calls = call("slurm.sbatch", *FLAGS, PYTHON="python3.99")
    assert [one[3:5] for one in calls] == [["python3.99", "main.py"]] * 2


def test_what_is_not_set_has_its_default(call):
    _, calls = call("local.sh", *FLAGS, NPROC="2")
    assert {part for one in calls for part in one if "coordinator" in part} == {
        "--coordinator=127.0.0.1:4321",
        "--coordinator=127.0.0.1:4322",
    }
    for restarts, queued in (("49", True), ("50", False)):
        _, calls = call(
            *("slurm.sbatch", *FLAGS),
            codes={"srun": [exits.PREEMPTED]},
            SLURM_JOB_ID="17",
            SLURM_RESTART_COUNT=restarts,
        )
        assert (["scontrol", "requeue", "17"] in calls) == queued
    names = {"CLUSTER": "c", "TPU_TYPE": "v5litepod-16", "IMAGE": "i", "NAME": "n"}
    _, ((*_, slices, restarts, _, _),) = call("gke.sh", *FLAGS, **names)
    assert (slices, restarts) == ("--num-slices=1", "--max-restarts=50")
    _, calls = call("gke.sh", *FLAGS, **names, SLICES="4", RESTARTS="7")
    assert {"--num-slices=4", "--max-restarts=7"} <= set(calls[0])
    _, calls = call("tpu_pod.sh", *FLAGS, TPU="pod", ZONE="zone")
    assert "cd fewstep && " in " ".join(calls[0])
    _, calls = call("tpu_pod.sh", *FLAGS, TPU="pod", ZONE="zone", FOLDER="elsewhere")
    assert "cd elsewhere && " in " ".join(calls[0])


def test_several_processes_on_one_machine_meet(call):
    code, calls = call("local.sh", *FLAGS, NPROC="2", PORT="5000")
    assert code == 0
    joined = [{part for part in one if part not in FLAGS} for one in calls]
    meet = {"--coordinator=127.0.0.1:5000", "--num_processes=2"}
    for expected in ({"--process_id=0"}, {"--process_id=1"}):
        assert {"python", "main.py"} | meet | expected in joined
    assert sum("--mode=doctor" in one for one in calls[:2]) == 2
    assert all("--coordinator=127.0.0.1:5001" in one for one in calls[:2])
    codes = [0, 0, exits.PEER_DIED, exits.BAD_INPUT]
    assert call("local.sh", *FLAGS, NPROC="2", codes={"python": codes})[0] == exits.BAD_INPUT


SRUN = ["srun", "--kill-on-bad-exit=0", "--wait=600", "python", "main.py", "--distributed"]


@pytest.mark.parametrize(
    ("codes", "restarts", "ended", "queued"),
    [
        ([0, 0], "0", 0, False),
        ([exits.BAD_INPUT], "0", exits.BAD_INPUT, False),
        ([0, exits.BAD_INPUT], "0", exits.BAD_INPUT, False),
        ([0, exits.PREEMPTED], "0", 0, True),
        ([exits.PEER_DIED], "3", 0, True),
        ([137], "3", 0, True),
        ([exits.PREEMPTED], "9", exits.PREEMPTED, False),
    ],
)
def test_slurm_queues_again_what_can_go_on(call, codes, restarts, ended, queued):
    code, calls = call(
        "slurm.sbatch",
        *FLAGS,
        codes={"srun": codes},
        SLURM_JOB_ID="17",
        SLURM_RESTART_COUNT=restarts,
        MAX_RESTARTS="9",
    )
    assert code == ended
    steps = [one for one in calls if one[0] == "srun"]
    # A job that starts again was looked at before.
    if restarts == "0":
        assert steps.pop(0) == [*SRUN, "--mode=doctor", *FLAGS]
    assert steps in ([], [[*SRUN, *FLAGS]])
    assert (["scontrol", "requeue", "17"] in calls) == queued


def test_tpu_hosts_get_the_flags_as_they_are(call):
    code, calls = call("tpu_pod.sh", *FLAGS, TPU="pod", ZONE="zone")
    assert code == 0 and calls[0][:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert "--worker=all" in calls[0]
    said = " ".join(calls[0])
    assert said.count("python main.py") == said.count("--workdir=/shared/a\\ run") == 2
    names = {"CLUSTER": "c", "TPU_TYPE": "v5litepod-16", "IMAGE": "i", "NAME": "n"}
    code, calls = call("gke.sh", *FLAGS, **names)
    assert code == 0 and calls[0][:3] == ["xpk", "workload", "create"]
    assert calls[0][-1].count("--workdir=/shared/a\\ run") == 2
    assert call("gke.sh", *FLAGS, **{**names, "IMAGE": ""})[0] != 0


def test_the_kubernetes_job_is_yaml_whose_pods_meet():
    names = {"NAME": "run", "IMAGE": "image", "COUNT": "2", "GPUS": "8", "CLAIM": "disk"}
    text = (LAUNCH / "kubernetes.yaml").read_text()
    filled = string.Template(text).safe_substitute(names, FLAGS=FLAGS[0])
    service, job = yaml.safe_load_all(filled)
    assert service["spec"]["clusterIP"] == "None"  # the word, which makes the service headless
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    container = job["spec"]["template"]["spec"]["containers"][0]
    doctor, train = container["args"][0].splitlines()[1:]
    assert "--mode=doctor" in doctor and "--coordinator=run-0.run:4321" in train
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    rules = job["spec"]["podFailurePolicy"]["rules"]
    ignored = rules[0]["onExitCodes"]["values"]
    assert rules[0]["action"] == "Ignore" and ignored == [exits.PREEMPTED, exits.PEER_DIED]
    subprocess.run(["bash", "-n"], input=container["args"][0], text=True, check=True)

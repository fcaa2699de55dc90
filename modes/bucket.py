"""--workdir in a bucket: a folder on the disk while a mode runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fewstep.buckets import address_of, is_address
from fewstep.data.arrays.array_cache import data_root
from fewstep.training.cluster import processes
from fewstep.training.storage.mirror import mirrored


@contextmanager
def on_disk(workdir: Path | None, trains: bool) -> Iterator[Path | None]:
    """The folder itself; for an address its mirror, which the bucket then equals.

    Raises ValueError for an address in several processes, and as `mirrored` does.
    """
    if workdir is None or not is_address(workdir):
        yield workdir
        return
    if processes.has_peers():
        raise ValueError(
            f"--workdir={address_of(workdir)} is an address, which only one process can use; "
            "mount the bucket on all hosts and name the folder of the mount (docs/clusters.md)"
        )
    with mirrored(workdir, data_root(), trains) as mirror:
        yield mirror

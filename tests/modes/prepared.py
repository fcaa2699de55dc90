"""`--mode=prepare` with latents, in small shards, as a user starts it; whole, or killed."""

import hashlib
import random
import time

from tests import cli

ROWS = 64  # images in a shard
SHARDS = -(-1437 // ROWS)  # of the training images of the digits
OPTIONS = ("--mode=prepare", "--config=configs/digits.py", "--config.codec.name=linear")


def in_small_shards():
    """Shards of ROWS images in this process."""
    from fewstep.data import encoded

    encoded.SHARD_ROWS = ROWS


def start(root, count=1):
    """Start to prepare in a folder, in so many processes; returns the commands."""
    options = (*OPTIONS, f"--config.data.dir={root}")
    if count == 1:
        return [cli.Command(options, before=in_small_shards)]
    return cli.start_together(count, *options, before=dict.fromkeys(range(count), in_small_shards))


def prepare(root, count=1):
    """Prepare in a folder; returns what the processes printed."""
    return cli.end_together(start(root, count))


def kill(root, count, shards, pause=0.0):
    """Kill the last of the processes `pause` seconds after so many shards are there.

    Returns whether it was still at work. The others end by themselves.
    """
    commands = start(root, count)
    victim = commands[-1].process
    while victim.is_alive() and shards_in(root) < shards:
        time.sleep(0.001)
    time.sleep(pause)
    hit = victim.is_alive()
    victim.kill()
    for command in commands:
        command.result()
    return hit and victim.exitcode == -9


def kill_at_random(root, count, rng: random.Random):
    """`kill` at a random moment, after at least one more shard than before."""
    return kill(root, count, rng.randint(shards_in(root) + 1, SHARDS), rng.uniform(0.0, 0.03))


def shards_in(root):
    """The number of shards that are there."""
    return len(list(root.rglob("train_labels*.npy")))


def contents(root):
    """SHA-256 of each array and each codec in a folder, by its path there."""
    return {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(root.rglob("*.np[yz]"))
    }

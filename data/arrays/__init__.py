"""Data sets as arrays: pixels, identity, shards on disk, and local copies."""

"""Data sets as arrays: their images, identity, and shards on disk."""

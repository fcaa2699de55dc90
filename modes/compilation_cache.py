"""Compiled programs kept on disk, so that the next start of a run, or of its like, finds them."""

import os
from pathlib import Path

import jax

from modes.request import Request

FOLDER = ".compiled"
OFF = "off"


def keep_compiled(request: Request) -> None:
    """Let JAX keep what it compiles, by default in a folder beside the run's.

    A folder that the user has told JAX ($JAX_COMPILATION_CACHE_DIR) stays, and so do JAX's other
    settings.
    """
    folder = folder_of(request)
    if folder is None or jax.config.jax_compilation_cache_dir is not None:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))


def folder_of(request: Request) -> Path | None:
    """Where compiled programs are kept: None without a run, if turned off, or if not writable."""
    asked = "" if request.config is None else request.config.compilation_cache
    if asked == OFF or not (asked or request.workdir):
        return None
    folder = Path(asked).expanduser() if asked else request.workdir.absolute().parent / FOLDER
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return folder if os.access(nearest, os.W_OK) else None

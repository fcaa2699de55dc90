"""Few-step generative models from Python: load, sample, train, evaluate (docs/python.md).

    run = fewstep.load("runs/digits")
    images = run.sample(labels=[3] * 16, steps=1, seed=0)

Importing this module imports no JAX and changes nothing outside it; the functions come from
library.py when they are first used. It also makes the folders beside this file sub-packages, such
as `fewstep.models`: a module with a `__path__` is a package, so a clone runs without installation.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.library import Config, Run, config, evaluate, load, train

__version__ = "0.1.0"
__all__ = ["Config", "Run", "config", "evaluate", "load", "train"]
__path__ = [str(Path(__file__).parent)]


def __getattr__(name: str) -> Any:
    """A part of the Python interface, imported when it is first used."""
    if name in __all__:
        return getattr(import_module("fewstep.library"), name)
    raise AttributeError(f"module 'fewstep' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The names of the module, those of the interface included."""
    return sorted({*globals(), *__all__})

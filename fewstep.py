"""Makes the folders beside this file sub-packages of `fewstep`, such as `fewstep.models`.

A module with a `__path__` is a package, so a clone of the repository runs without installation.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parent)]

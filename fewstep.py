"""Fewstep as one package, whose sub-packages are the rooms beside this file: `fewstep.models`, ...

A module with a `__path__` is a package. So a clone runs with nothing installed, and every import
has the package's name.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parent)]

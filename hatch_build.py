"""Builds the package `fewstep` from the folders beside this file (pyproject.toml)."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface


class Layout(BuildHookInterface):
    """Puts the rooms and modules that pyproject.toml names into a wheel, which is all of `fewstep`.

    fewstep.py becomes the package itself. An editable installation copies nothing.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files of a wheel; `version` is standard or editable."""
        if version == "standard":
            modules = [f"{module}.py" for module in self.config["modules"]]
            below = {name: name for name in (*self.config["rooms"], *modules)}
            build_data["force_include"] |= {"fewstep.py": "__init__.py", **below}


class Requirements(MetadataHookInterface):
    """Takes the dependencies from requirements.txt, the only list of them."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the dependencies."""
        lines = Path(self.root, "requirements.txt").read_text(encoding="utf-8").splitlines()
        required = [line.partition("#")[0].strip() for line in lines]
        metadata["dependencies"] = [line for line in required if line]

"""The rows of configs/shortcut_table.py, which has the command, on CelebA-HQ."""

from ml_collections import ConfigDict

from fewstep.configs import celebahq256
from fewstep.configs.shortcut_table import table_config


def get_config(method: str = "shortcut") -> ConfigDict:
    """A row on CelebA-HQ."""
    return table_config(celebahq256.get_config, method)

"""The rows of configs/shortcut_table.py, which has the command, on ImageNet."""

from ml_collections import ConfigDict

from fewstep.configs import imagenet256
from fewstep.configs.shortcut_table import table_config


def get_config(method: str = "shortcut") -> ConfigDict:
    """A row on ImageNet."""
    return table_config(imagenet256.get_config, method)

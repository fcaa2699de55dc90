"""The rows of configs/shortcut_table.py, which has the command, on Fashion-MNIST."""

from ml_collections import ConfigDict

from fewstep.configs import fashion_mnist
from fewstep.configs.shortcut_table import table_config


def get_config(method: str = "shortcut") -> ConfigDict:
    """A row on Fashion-MNIST."""
    return table_config(fashion_mnist.get_config, method)

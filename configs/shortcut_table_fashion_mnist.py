"""The rows of configs/shortcut_table.py on the data of configs/fashion_mnist.py.

    python main.py --mode=compare --config=configs/shortcut_table_fashion_mnist.py \
        --methods=ddpm,flow_matching,progressive,cd_flow,reflow,ct_flow,live_reflow,shortcut \
        --workdir=runs/shortcut_table_fashion_mnist
"""

from ml_collections import ConfigDict

from fewstep.configs import fashion_mnist
from fewstep.configs.shortcut_table import table_config


def get_config(method: str = "shortcut") -> ConfigDict:
    """A row on Fashion-MNIST."""
    return table_config(fashion_mnist.get_config, method)

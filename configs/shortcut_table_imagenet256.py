"""The rows of configs/shortcut_table.py on the data of configs/imagenet256.py.

    python main.py --mode=compare --config=configs/shortcut_table_imagenet256.py \
        --methods=ddpm,flow_matching,progressive,cd_flow,reflow,ct_flow,live_reflow,shortcut \
        --workdir=runs/shortcut_table_imagenet256 \
        --config.data.name=folder:PATH --config.codec.weights=FILE
"""

from ml_collections import ConfigDict

from fewstep.configs import imagenet256
from fewstep.configs.shortcut_table import table_config


def get_config(method: str = "shortcut") -> ConfigDict:
    """A row on ImageNet."""
    return table_config(imagenet256.get_config, method)

"""Networks by name. Outside this folder every network is a `Network` of pure functions."""

from fewstep.models.codec_network import CODEC
from fewstep.models.dit import DIT
from fewstep.models.mlp import MLP
from fewstep.models.network import Architecture

NETWORKS: dict[str, Architecture] = {"dit": DIT, "mlp": MLP, "codec": CODEC}

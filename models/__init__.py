"""Networks by name. Outside this folder every network is a `Network` of pure functions."""

from fewstep.models.adm_unet import ADM_UNET
from fewstep.models.codec_network import CODEC
from fewstep.models.dit import DIT
from fewstep.models.mlp import MLP
from fewstep.models.network import Architecture
from fewstep.models.song_unet import SONG_UNET

NETWORKS: dict[str, Architecture] = {
    "dit": DIT,
    "mlp": MLP,
    "song_unet": SONG_UNET,
    "adm_unet": ADM_UNET,
    "codec": CODEC,
}

"""Fashion-MNIST in latents of 4 x 4 x 6, an eighth of the numbers of an image.

The codec is trained here too. It is an autoencoder that adds to principal components of patches:

python main.py --mode=prepare --config=configs/fashion_mnist.py
python main.py --config=configs/fashion_mnist_latents.py:autoencoder --workdir=runs/fashion_codec

Then train on its latents. The images are encoded once, before the first step:

python main.py --config=configs/fashion_mnist_latents.py:shortcut \
    --config.codec.weights=runs/fashion_codec --workdir=runs/latent_shortcut

A teacher, then its student, which takes the codec from it too:

python main.py --config=configs/fashion_mnist_latents.py:flow_matching \
    --config.codec.weights=runs/fashion_codec --workdir=runs/latent_flow_matching
python main.py --config=configs/fashion_mnist_latents.py:sim_flow \
    --config.teacher=runs/latent_flow_matching --workdir=runs/latent_sim

Metrics are of decoded samples, against the images themselves.
"""

from ml_collections import ConfigDict

from fewstep.configs import fashion_mnist, methods, objectives

CODEC = "f7"
SIGMA_DATA = 1.0  # latents are scaled to deviation 1
# log(SIGMA_DATA / 0.5): published noise levels assume data of standard deviation 0.5.
LOG_LEVEL_SHIFT = 0.69


def get_config(method: str = "shortcut") -> ConfigDict:
    """A DiT of 0.7 M parameters on 16 tokens; the codec itself for the method autoencoder."""
    config = fashion_mnist.configure(method, SIGMA_DATA, LOG_LEVEL_SHIFT)
    if method == "autoencoder":
        config.model.codec = CODEC
        config.objective.distance = objectives.distance("features")
        return config
    config.codec.name = CODEC
    config.batch_size = 128
    methods.network(config, size="micro", patch_size=1)
    return config

"""Fashion-MNIST: 60,000 training images of clothes, 28 x 28, 10 classes.

python main.py --mode=prepare --config=configs/fashion_mnist.py
python main.py --config=configs/fashion_mnist.py:shortcut --workdir=runs/fashion_shortcut
"""

from ml_collections import ConfigDict

from configs import base, methods


def get_config(method: str = "shortcut") -> ConfigDict:
    """A DiT of 1.3 M parameters on 49 tokens, sized for a CPU."""
    config = methods.choose(base.config(), method)
    config.steps = 4000
    config.batch_size = 64
    config.data.name = "fashion_mnist"
    config.data.flip = True
    config.model.size = "mini"
    config.model.patch_size = 4
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.checkpoint.every = 1000
    if method == "shortcut":
        # A short run: the current network teaches its larger steps sooner than an average of it
        # (README, figures). The default for long runs is the paper's EMA.
        config.objective.target_decay = 0.0
    return config

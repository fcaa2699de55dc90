"""ImageNet at 256 x 256 in the latents of sd-vae-ft-mse (32 x 32 x 4), 1,000 classes.

    python main.py --mode=describe --config=configs/imagenet256.py:shortcut
    python main.py --mode=describe --config=configs/imagenet256.py:shortcut --config.model.size=XL
    python main.py --mode=plan --config=configs/imagenet256.py:shortcut --mesh=8,8

The setting of Frans et al. 2024: DiT-B/2, 810,000 steps of 256 images, a quarter of them
bootstrapped (their code: 1/8, --config.objective.bootstrap_fraction=0.125), guidance 1.5, EMA
0.999, AdamW 1e-4 with decay 0.1. Their table 1, FID-50k at 128 / 4 / 1 steps: shortcut 15.5 / 28.3
/ 40.3 (XL/2: 3.8 / 7.8 / 10.6), flow matching 17.3 / 108.2 / 324.8.

The other methods combine their own papers' objectives with this network and optimizer. A student's
--config.teacher is a run of the same config file; lcm needs a ddpm run that predicts v
(--config.prediction.kind=v).

The pictures come from a folder or from TFDS, and the codec from a file of published weights
(docs/latents.md has the whole path):

    python main.py --mode=prepare --config=configs/imagenet256.py --config.data.name=folder:PATH \
        --config.codec.weights=FILE
    python main.py --config=configs/imagenet256.py:shortcut --config.data.name=folder:PATH \
        --config.codec.weights=FILE --workdir=runs/imagenet256

Runs are measured by Inception's features: name its file by --config.evaluate.weights=FILE or
$FEWSTEP_INCEPTION, or train without measuring by --config.evaluate.features=none.

The latents are scaled by 0.18215, as in the paper. With edm and trigflow, and their students, they
are centred and of deviation 0.5, which these methods assume.
"""

from ml_collections import ConfigDict

from fewstep.configs import methods


def get_config(method: str = "shortcut") -> ConfigDict:
    """The paper's class-conditional setting."""
    config = methods.frans_2024(method)
    config.steps = 810_000
    config.batch_size = 256
    config.data.num_classes = 1000
    if "label_dropout" in config.objective:  # the paper guides these; lcm has its own range
        config.objective.guidance_scale = 1.5
    return config

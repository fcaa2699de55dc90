"""CelebA-HQ at 256 x 256 in the latents of sd-vae-ft-mse (32 x 32 x 4), without labels.

    python main.py --mode=describe --config=configs/celebahq256.py:shortcut

The setting of Frans et al. 2024: DiT-B/2, 410,000 steps of 64 images (the command in their
README; an answer to readers says 256 without naming the data set), a quarter of them bootstrapped
(their code: 1/8, --config.objective.bootstrap_fraction=0.125), EMA 0.999, AdamW 1e-4 with decay
0.1, on a TPU v3-32. Their table 1, FID-50k at 128 / 4 / 1 steps: shortcut 6.9 / 13.8 / 20.5, flow
matching 7.3 / 63.3 / 280.5.

The other methods combine their own papers' objectives with this network and optimizer. A student's
--config.teacher is a run of the same config file; lcm needs a ddpm run that predicts v
(--config.prediction.kind=v).

The pictures come from a folder or from TFDS, and the codec from a file of published weights
(docs/latents.md has the whole path):

    python main.py --mode=prepare --config=configs/celebahq256.py --config.data.name=folder:PATH \
        --config.codec.weights=FILE
    python main.py --config=configs/celebahq256.py:shortcut --config.data.name=folder:PATH \
        --config.codec.weights=FILE --workdir=runs/celebahq256

Runs are measured by Inception's features: name its file by --config.evaluate.weights=FILE or
$FEWSTEP_INCEPTION, or train without measuring by --config.evaluate.features=none.

The latents are scaled by 0.18215, as in the paper. With edm and trigflow, and their students, they
are centred and of deviation 0.5, which these methods assume.
"""

from ml_collections import ConfigDict

from fewstep.configs import methods


def get_config(method: str = "shortcut") -> ConfigDict:
    """The paper's unconditional setting."""
    config = methods.frans_2024(method)
    config.steps = 410_000
    config.batch_size = 64
    config.data.num_classes = 0
    if "label_dropout" in config.objective:
        config.objective.label_dropout = 0.0
    if "guidance_range" in config.objective:
        # Without classes nothing can be guided: lcm is plain distillation on the same grid, and a
        # student of guidance is its teacher.
        config.objective.guidance_range = (1.0, 1.0) if method == "guidance" else ()
        config.objective.guidance_scale = 1.0
    return config

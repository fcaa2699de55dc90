"""Latents as PyTorch's own writers leave them."""

import numpy as np
import pytest

from tests.data import latent_fixtures as fixtures
from tests.data.test_latent_files import load

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity


def test_files_of_pytorch_are_read(tmp_path):
    (tmp_path / "given").mkdir()
    for i, (moment, label) in enumerate(zip(fixtures.MOMENTS, fixtures.LABELS, strict=True)):
        saved = {"image": torch.from_numpy(moment), "label": torch.tensor(label)}
        torch.save(saved, tmp_path / "given" / f"{i}.pt")
    found = load(tmp_path / "given", tmp_path)
    np.testing.assert_array_equal(found.moments.array, fixtures.posteriors("torch"))
    np.testing.assert_array_equal(found.train.labels, fixtures.LABELS)
    # A label that is no tensor is named.
    torch.save(
        {"image": torch.from_numpy(fixtures.MOMENTS[0]), "label": 1}, tmp_path / "given/3.pt"
    )
    with pytest.raises(ValueError, match="3.pt .*label"):
        load(tmp_path / "given", tmp_path)


def test_safetensors_of_their_library_are_read(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    (tmp_path / "given").mkdir()
    tensors = {
        "latents": fixtures.MEAN,
        "latents_flip": fixtures.FLIPPED,
        "labels": fixtures.LABELS,
    }
    tensors = {name: torch.from_numpy(array) for name, array in tensors.items()}
    save_file(tensors, tmp_path / "given" / "latents_rank00_shard000.safetensors")
    stats = {
        "mean": tensors["latents"].mean((0, 2, 3), keepdim=True),
        "std": torch.full((1, 4, 1, 1), 5.0),
    }
    torch.save(stats, tmp_path / "given" / "latents_stats.pt")
    found = load(tmp_path / "given", tmp_path)
    np.testing.assert_array_equal(found.moments.array, fixtures.posteriors("shards"))

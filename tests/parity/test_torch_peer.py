"""The network that bench/torch_peer.py measures is the published one, and so is ours."""

import pytest

from fewstep.models.dit import SIZES
from tests.parity import test_dit

torch = pytest.importorskip("torch", reason="PyTorch is installed by `make parity`")

pytestmark = pytest.mark.parity


def test_the_peer_computes_what_the_reference_does():
    from bench.torch_peer import DiT

    reference = test_dit.DiT(8, 2, SIZES["nano"])
    test_dit.randomize(reference, 0)
    peer = DiT(SIZES["nano"], side=8, classes=test_dit.CLASSES)
    # Of the time embedding and of a block's parts only the names differ.
    renamed = {
        name.replace(".attn.", ".").replace("t_embedder.mlp.", "t_embedder."): value
        for name, value in reference.state_dict().items()
    }
    peer.load_state_dict(renamed)
    x, t = torch.randn(4, test_dit.CHANNELS, 8, 8), torch.rand(4)
    label = torch.tensor([0, 3, 9, test_dit.CLASSES])
    with torch.no_grad():
        torch.testing.assert_close(
            peer(x, t, label), reference(x, 1000.0 * t, label), atol=2e-3, rtol=1e-3
        )

"""The network that bench/torch_peer.py measures is the published one, and so is ours."""

import pytest

from fewstep.models.dit import SIZES
from tests.parity import test_dit

torch = pytest.importorskip("torch", reason="PyTorch is installed by `make parity`")

pytestmark = pytest.mark.parity
# Parts of published names -> those of the peer, whose modules are the same and have shorter names.
SHORTER = {
    "x_embedder.proj": "x_embedder",
    "t_embedder.mlp": "t_embedder",
    "y_embedder.embedding_table": "y_embedder",
    ".attn.": ".",
    ".mlp.": ".",
    "final_layer.": "",
    "adaLN_modulation.1": "ada",
}


def renamed(name):
    for published, own in SHORTER.items():
        name = name.replace(published, own)
    return name


def test_the_peer_computes_what_the_reference_does():
    from bench.torch_peer import DiT

    reference = test_dit.DiT(8, **test_dit.SHARED, patch=2, size=SIZES["nano"])
    test_dit.randomize(reference, 0)
    peer = DiT(SIZES["nano"], side=8, **test_dit.SHARED)
    peer.load_state_dict(
        {
            renamed(name): value
            for name, value in reference.state_dict().items()
            if name != "pos_embed"  # the peer computes its own
        }
    )
    x, t = torch.randn(4, test_dit.SHARED["channels"], 8, 8), torch.rand(4)
    label = torch.tensor([0, 3, 9, test_dit.SHARED["classes"]])
    with torch.no_grad():
        torch.testing.assert_close(
            peer(x, t, label), reference(x, 1000.0 * t, label), atol=2e-3, rtol=1e-3
        )

import numpy as np
import pytest

from fewstep.latents.patches import depth_to_space, space_to_depth


@pytest.mark.parametrize("side", [1, 2])
def test_patches_become_channels_and_back(side):
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = space_to_depth(x, side)
    assert patches.shape == (2, 4 // side, 6 // side, 3 * side**2)
    there = patches[1, 1, 2].reshape(side, side, 3)
    np.testing.assert_array_equal(there, x[1, side : 2 * side, 2 * side : 3 * side])
    np.testing.assert_array_equal(depth_to_space(patches, side), x)

"""What tests of training share."""

from collections.abc import Iterator

import pytest

from fewstep.models.dit import SIZES, DiTSize
from tests.networks import NO_BLOCKS


@pytest.fixture(scope="module")
def one_block() -> Iterator[None]:
    """The smallest network with every part; compiles in a third of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "nano", DiTSize(32, 1, 2))
        yield


@pytest.fixture(scope="module")
def no_blocks() -> Iterator[None]:
    """The smallest networks are without blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "nano", NO_BLOCKS)
        yield

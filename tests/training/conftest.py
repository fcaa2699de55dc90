"""What tests of training share."""

from collections.abc import Iterator

import pytest

from fewstep.models.dit import SIZES
from tests.networks import NO_BLOCKS


@pytest.fixture(scope="module")
def no_blocks() -> Iterator[None]:
    """The smallest networks are without blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "nano", NO_BLOCKS)
        yield

"""What modes ask of the command line."""

from pathlib import Path

import pytest

from modes.request import Request, required_workdir


def test_the_address_of_a_bucket_is_no_workdir():
    for address in ("gs://bucket/run", "s3://bucket/run"):
        with pytest.raises(ValueError, match="mount the bucket"):
            required_workdir(Request(config=None, workdir=Path(address)))
    for folder in ("runs/digits", "/shared/a:b", "."):
        assert required_workdir(Request(config=None, workdir=Path(folder))) == Path(folder)
    with pytest.raises(ValueError, match="--workdir=DIR is needed"):
        required_workdir(Request(config=None, workdir=None))

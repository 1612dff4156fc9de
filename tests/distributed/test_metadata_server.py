"""Where the metadata server of a virtual machine is."""

import pytest

from prottrans_jax.distributed import metadata_server


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "metadata.google.internal"),
        ({"GCE_METADATA_HOST": "a:1"}, "a:1"),
        ({"GCE_METADATA_IP": "10.0.0.2"}, "10.0.0.2"),
        ({"GCE_METADATA_HOST": "a:1", "GCE_METADATA_IP": "b"}, "a:1"),
        ({"GCE_METADATA_HOST": "", "GCE_METADATA_IP": "b"}, "b"),
    ],
)
def test_the_variable_of_google_comes_before_that_of_jax(environ, expected):
    assert metadata_server.address(environ) == expected

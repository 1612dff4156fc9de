"""The order of prepared records is the same in every version."""

import numpy as np

from prottrans_jax.data.records import spill


def test_the_shuffle_is_that_of_earlier_versions():
    hashes = np.array([0, 1, 2**63 + 12345], np.uint64)
    expected = [15665806890375577970, 9803774434592466113, 1649833740100824267]
    assert spill.shuffle_key(hashes, seed=3).tolist() == expected
    assert hashes.tolist() == [0, 1, 2**63 + 12345]

import pytest

from prottrans_jax.files import digests

# SHA-256 of b"abc": FIPS 180-2, appendix B.1.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_every_way_of_hashing_gives_the_published_digest(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    in_parts = digests.Sha256()
    in_parts.update(b"a")
    in_parts.update(b"bc")
    assert in_parts.hexdigest() == ABC and in_parts.num_bytes == 3
    assert digests.of_file(tmp_path / "abc") == digests.of_bytes(b"abc") == ABC
    assert digests.raw(b"abc").hex() == ABC
    assert digests.raw_of_each([b"abc", b"abc"]).hex() == ABC + ABC


def test_file_larger_than_a_block_is_read_completely(tmp_path):
    data = bytes(range(256)) * (1 << 15)  # 8 MiB
    (tmp_path / "large").write_bytes(data + b"end")
    digest = digests.read(tmp_path / "large")
    assert digest.num_bytes == len(data) + 3
    assert digest.hexdigest() == digests.of_bytes(data + b"end")


def test_order_of_keys_does_not_change_the_digest_of_json():
    assert digests.of_json({"a": 1, "b": [2]}) == digests.of_json({"b": [2], "a": 1})
    assert digests.of_json({"a": 1}) == digests.of_bytes(b'{"a": 1}')
    assert digests.of_json({"a": 1}, separators=(",", ":")) == digests.of_bytes(
        b'{"a":1}'
    )


def test_missing_file_has_no_digest(tmp_path):
    with pytest.raises(FileNotFoundError):
        digests.of_file(tmp_path / "absent")

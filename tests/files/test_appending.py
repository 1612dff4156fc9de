"""Files that grow by whole records, also on a disk that is full for a while."""

import contextlib
import resource
import signal

import pytest

from prottrans_jax.files import appending


@contextlib.contextmanager
def no_file_beyond(size):
    """The kernel refuses to let any file of this process grow beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_record_that_does_not_fit_is_kept_and_written_with_the_next(tmp_path):
    path = tmp_path / "log"
    file = appending.AppendedFile(path)
    file.append(b"one\n")
    with no_file_beyond(9):
        with pytest.raises(OSError, match="too large"):
            file.append(b"second\n")
        # No half of a record is left behind.
        assert path.read_bytes() == b"one\n"
    file.append(b"three\n")
    file.close()
    assert path.read_bytes() == b"one\nsecond\nthree\n"


def test_record_takes_the_place_of_the_last_one(tmp_path):
    path = tmp_path / "log"
    file = appending.AppendedFile(path)
    file.append(b"one\n")
    file.append(b"two\n")
    file.append(b"two and more\n", replacing=b"two\n")
    file.close()
    assert path.read_bytes() == b"one\ntwo and more\n"


def test_last_record_stays_while_its_successor_does_not_fit(tmp_path):
    path = tmp_path / "log"
    file = appending.AppendedFile(path)
    file.append(b"one\n")
    with no_file_beyond(8):
        with pytest.raises(OSError, match="too large"):
            file.append(b"one and more\n", replacing=b"one\n")
        assert path.read_bytes() == b"one\n"
        with pytest.raises(OSError, match="too large"):
            file.append(b"one and most\n", replacing=b"one and more\n")
    file.close()
    assert path.read_bytes() == b"one and most\n"


def test_line_after_a_torn_one_stands_alone(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b'{"step": 1}\n{"ste')
    appending.append_line(path, '{"step": 2}')
    assert path.read_text() == '{"step": 1}\n{"ste\n{"step": 2}\n'


def test_damaged_files_are_kept_under_numbers(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"first")
    assert appending.set_aside(path, "log.damaged-{}").name == "log.damaged-1"
    path.write_bytes(b"second")
    assert appending.set_aside(path, "log.damaged-{}").read_bytes() == b"second"
    assert (tmp_path / "log.damaged-1").read_bytes() == b"first"

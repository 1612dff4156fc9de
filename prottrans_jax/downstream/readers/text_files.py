"""Lines of a plain or compressed text file of labels."""

from prottrans_jax.files import paths
from prottrans_jax.proteins import unpacking

# A small compressed file may decompress to anything; published sets are below 1 GiB.
MAX_TEXT_BYTES = 2 << 30
_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"


def lines(place: paths.Place) -> list[str]:
    """Lines without their ends (LF, CRLF or CR); line k of the file is item k - 1.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: It is damaged, not UTF-8, or larger than `MAX_TEXT_BYTES`; names it.
    """
    pieces = []
    size = 0
    try:
        for piece in unpacking.unpacked(place.open("rb"), None):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_TEXT_BYTES:
                raise ValueError(
                    f"{place}: over {MAX_TEXT_BYTES >> 30} GiB of text. Split the file."
                )
    except EOFError:
        raise ValueError(
            f"{place}: the compressed file is cut short, or has foreign bytes at its "
            "end. Download or copy it again."
        ) from None
    except unpacking.UnreadableError as error:
        raise ValueError(f"{place}: {error}") from None
    except unpacking.errors() as error:
        raise ValueError(
            f"{place}: cannot be decompressed: {error}. Download or copy it again."
        ) from None
    data = b"".join(pieces)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{place}:{line}: byte 0x{data[error.start]:02x} is not UTF-8. Convert the "
            "file, e.g. with `iconv -f latin1 -t utf8`."
        ) from None
    text = text.removeprefix(_BOM).replace("\r\n", "\n").replace("\r", "\n")
    return text.removesuffix("\n").split("\n") if text else []

"""Text from files that others may have made, as it may be printed on a terminal.

Ids of proteins, names of arrays and messages that quote them may hold control
characters: a terminal would obey an escape sequence instead of showing it.
"""

import logging

_KEPT = "\n\t"


def plain(text: object) -> str:
    """Text with control and invisible characters as escapes such as ``\\\\x1b``."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(
        char
        if char.isprintable() or char in _KEPT
        else char.encode("unicode_escape").decode()
        for char in shown
    )


def guard_logs() -> None:
    """Makes absl's handler, which prints the log, print `plain` text only."""
    from absl import logging as absl_logging

    handler = absl_logging.get_absl_handler()
    if _plain_record not in handler.filters:
        handler.addFilter(_plain_record)


def _plain_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = plain(record.getMessage()), None
    return True

"""A progress bar for scripts and notebooks; the command has lines of its own."""

from collections.abc import Callable, Iterator
import contextlib


@contextlib.contextmanager
def bar(is_shown: bool) -> Iterator[Callable[[int, int], None]]:
    """What is called with the residues that are done and those that there are.

    Args:
      is_shown: Whether that shows a bar on stderr; else it does nothing.
    """
    if not is_shown:
        yield lambda done, total: None
        return
    from rich import console, progress

    columns = (
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TextColumn("{task.completed:,.0f} of {task.total:,.0f} residues"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console.Console(stderr=True)) as shown:
        task = shown.add_task("", total=0)
        yield lambda done, total: shown.update(task, completed=done, total=total)

"""A progress bar for scripts and notebooks; the command prints progress lines."""

from collections.abc import Callable, Iterator
import contextlib


@contextlib.contextmanager
def bar(is_shown: bool) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that is called with (finished residues, all residues).

    Args:
      is_shown: Whether to show a bar on stderr; if not, the function does nothing.
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

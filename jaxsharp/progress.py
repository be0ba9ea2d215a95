"""A progress bar with an estimate of the time left, moved on the host between compiled calls."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def bar(shown: bool, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar on stderr over a number of measurements; yields the function that advances it.

    Args:
        shown: whether to show anything.
        total: how many measurements there are.

    Yields:
        `(count) -> None`.

    Example:
        >>> with bar(False, 10) as advance:
        ...     advance(1)
    """
    if not shown:
        yield lambda count: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("measurements"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("simulating", total=total)
        yield lambda count: progress.advance(task, count)

"""Convert many images with several processes, and show the progress."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from threading import Thread
from typing import TypeVar

Item = TypeVar('Item')
Result = TypeVar('Result')

SECONDS_BETWEEN_LINES = 5.0
# Few enough that an interrupt does not wait long for those begun.
IMAGES_AT_ONCE = 4


def clock(seconds: float) -> str:
    """Format seconds as ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02}:{rest:02}'


def say(message: str) -> None:
    """Print a message at once, also into a pipe."""
    print(message, flush=True)


def show_progress(name: str, results: Iterable[Result], total: int) -> Iterator[Result]:
    """Pass the results on, and print a line every few seconds."""
    started = shown = time.monotonic()
    for done, result in enumerate(results, 1):
        yield result
        now = time.monotonic()
        if now - shown >= SECONDS_BETWEEN_LINES and done < total:
            shown = now
            rate = done / (now - started)
            left = clock((total - done) / rate)
            say(f'{name}: {done} of {total} images, {rate:.1f} images/s, {left} left')


def convert_all(
    convert: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    """Yield ``convert`` of each item, in the order of the items."""
    if workers <= 1 or len(items) <= 1:
        yield from map(convert, items)
        return
    executor = ProcessPoolExecutor(workers, initializer=_follow_the_parent)
    try:
        yield from executor.map(convert, items, chunksize=IMAGES_AT_ONCE)
    finally:
        executor.shutdown(cancel_futures=True)


def _follow_the_parent() -> None:
    # Ctrl-C reaches the whole group: the parent ends this process once its images are finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    # A killed parent leaves no message, and its processes would wait for images for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

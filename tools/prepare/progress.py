"""Convert many images with several processes, and show the progress."""

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from threading import Thread
from typing import TypeVar

Item = TypeVar('Item')
Result = TypeVar('Result')

SECONDS_BETWEEN_LINES = 5.0
# Enough that no process waits for the next image, few enough to be forgotten on an interrupt.
QUEUED_PER_WORKER = 4


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
) -> Iterator[tuple[Item, Result]]:
    """Yield ``convert`` of each item in their order, and keep none of the results."""
    if workers <= 1 or len(items) <= 1:
        for item in items:
            yield item, convert(item)
        return
    executor = ProcessPoolExecutor(workers, initializer=_follow_the_parent)
    queue: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            queue.append((item, executor.submit(convert, item)))
            if len(queue) >= QUEUED_PER_WORKER * workers:
                done, future = queue.popleft()
                yield done, future.result()
        while queue:
            done, future = queue.popleft()
            yield done, future.result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _follow_the_parent() -> None:
    # Ctrl-C reaches the whole group: the parent ends this process once its image is finished.
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    # A killed parent leaves no message, and its processes would wait for images for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

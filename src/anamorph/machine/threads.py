"""Who uses how many of the processor's threads.

How an operation rounds may depend on the number of threads that it is split over. So that numbers
do not, each operation gets one thread, and batches run side by side instead.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_turn = threading.RLock()  # torch's number of threads belongs to the whole process


@contextmanager
def torch_threads(number: int) -> Iterator[int]:
    """Set how many threads torch uses in an operation; afterwards it is as before.

    NumPy's linear algebra uses one meanwhile, and autocast, which is each thread's own, is off. A
    call from another thread waits for its turn.

    Yields:
        how many it used before.
    """
    with _turn:
        before = torch.get_num_threads()
        torch.set_num_threads(number)
        try:
            with torch.autocast("cpu", enabled=False), threadpool_limits(1, user_api="blas"):
                yield before
        finally:
            torch.set_num_threads(before)


def side_by_side(
    work: Callable[[_Item], _Result], items: Iterable[_Item], workers: int
) -> Iterator[_Result]:
    """Work on items, `workers` at a time, within `torch_threads(1)`.

    As soon as one fails, or the caller stops iterating, the rest is given up. Few results are kept
    at a time.

    Yields:
        the result of every item, in their order.
    """
    if workers == 1:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    begun: deque[Future[_Result]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) > 2 * workers:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

"""Keep Python's collector of garbage out of where there is none."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def all_stays() -> Iterator[None]:
    """Make, in the body, hundreds of thousands of objects that all stay: without the collector in half of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

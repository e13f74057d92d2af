"""What worker processes of the tests do; alone in its file, since each of them imports it."""

import os


def square(item: int) -> int:
    """Its square; 13 kills the process."""
    if item == 13:
        os._exit(1)
    return item * item

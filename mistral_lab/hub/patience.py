"""Requests that are made again where the hub is too busy to answer, or the connection breaks."""

import sys
import threading
import time
from collections.abc import Callable

BUSY = (408, 429, 500, 502, 503, 504)
WAITS_S = (1, 2, 4, 8)  # before a request is made again that failed for the hub's reasons
LONGEST_WAIT_S = 300  # the time after which the hub begins to count requests anew
WORTH_A_WORD_S = 10


class Stopped(Exception):
    """Another file failed, or the reader interrupted."""


def patiently(call: Callable, place: Callable[[], int] | None = None, stop: threading.Event | None = None):
    """Make a request, and make it again a few times where the hub is too busy to answer it.

    Args:
        call: makes the request.
        place: says how far a download has come. With it, a request is made again after a broken connection too, and
            progress gives all tries back; 429 is then left to the library, which has waited already.
        stop: ends a wait, where another file has failed or the reader has interrupted.

    Returns:
        what the request returns.

    Raises:
        Stopped: `stop` was set during a wait.
        huggingface_hub.errors.HTTPError: the last try failed too, or the error is none that waiting helps against.
    """
    from huggingface_hub import errors

    tries = 0
    while True:
        before = place() if place else 0
        try:
            return call()
        except errors.HTTPError as error:
            response = getattr(error, "response", None)
            again = place is not None if response is None else response.status_code in BUSY
            if place and place() > before:
                tries = 0
            if not again or tries == len(WAITS_S) or (place and response is not None and response.status_code == 429):
                raise
            wait = WAITS_S[tries]
            if response is not None and (asked := response.headers.get("Retry-After", "")).isdigit():
                wait = min(int(asked), LONGEST_WAIT_S)
        tries += 1
        if wait > WORTH_A_WORD_S:
            print(f"the hub is too busy to answer: asking again in {wait} s", file=sys.stderr, flush=True)
        for _ in range(wait):
            if stop is not None and stop.is_set():
                raise Stopped
            time.sleep(1)

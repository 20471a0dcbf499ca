"""Standard output that a closed pipe does not break."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class _Unbroken:
    """Stream that discards its text once its reader is gone, such as `head`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._try(self._stream.flush)

    def _try(self, function: Callable[[], Any]) -> None:
        try:
            function()
        except BrokenPipeError:
            # Below the stream, whose buffer is written once more at the exit of the process.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextlib.contextmanager
def unbroken_output() -> Iterator[None]:
    """Keep a command running whose standard output or error is closed."""
    with contextlib.ExitStack() as stack:
        for redirect, stream in ((contextlib.redirect_stdout, sys.stdout), (contextlib.redirect_stderr, sys.stderr)):
            usable = stream or stack.enter_context(Path(os.devnull).open("w"))  # None if the descriptor is closed
            stack.enter_context(redirect(_Unbroken(usable)))
        yield

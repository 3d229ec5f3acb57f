"""Files that libavformat reads from us."""

from __future__ import annotations

import io

from server.ingest.source import SourceError


class Readable(io.RawIOBase):
    """A stream of bytes that come in pieces, as `_more` gives them. Not seekable.

    PyAV keeps an exception until libavformat has given up, and libavformat tries again. So after an error it is at its
    end, and the first error is the one that is told.
    """

    def __init__(self, name: str) -> None:
        """`name`: for libavformat's messages."""
        super().__init__()
        self.name = name
        self._rest = b""
        self._failed = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> bytes:
        """Some bytes as soon as there are any, at most `size`; b"" at the end. Raises SourceError, once."""
        if not self._rest and not self._failed:
            try:
                self._rest = self._more(size)
            except SourceError:
                self._failed = True
                raise
        data = self._rest[:size] if size > 0 else self._rest
        self._rest = self._rest[len(data) :]
        return data

    def begin_anew(self) -> None:
        """Forget what was read."""
        self._rest = b""
        self._failed = False

    def _more(self, size: int) -> bytes:
        """The next bytes, b"" at the end. `size` is what is asked for, and may be ignored."""
        raise NotImplementedError

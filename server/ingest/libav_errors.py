"""What went wrong in libavformat, as a reason and a sentence. URLs and libav's own texts, which may hold credentials,
are never repeated."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import av.error

from server.ingest.source import Reason, SourceError

Lines = Sequence[tuple[int, str, str]]
"""(level, who, text) as PyAV captures libav's log."""

_BY_CLASS: tuple[tuple[type[Exception], Reason, str], ...] = (
    (av.error.HTTPUnauthorizedError, Reason.AUTH, "user name or password are wrong or missing"),
    (av.error.HTTPForbiddenError, Reason.AUTH, "access is forbidden with these credentials"),
    (av.error.HTTPNotFoundError, Reason.NOT_FOUND, "there is nothing at this path"),
    (av.error.HTTPServerError, Reason.ERROR, "the peer answers with an internal error (5xx)"),
    (av.error.HTTPClientError, Reason.PROTOCOL, "the peer refuses the request (4xx)"),
    (av.error.ConnectionRefusedError, Reason.REFUSED, "the connection is refused"),
    (av.error.FileNotFoundError, Reason.NOT_FOUND, "there is no such file"),
    (av.error.IsADirectoryError, Reason.NOT_FOUND, "this is a folder, not a file"),
    (av.error.PermissionError, Reason.ERROR, "permission is denied"),
    (av.error.ExitError, Reason.TIMEOUT, "no answer within the time-out"),
    (av.error.TimeoutError, Reason.TIMEOUT, "no answer within the time-out"),
    (av.error.ProtocolNotFoundError, Reason.ERROR, "libav does not speak this protocol"),
    (av.error.DemuxerNotFoundError, Reason.CODEC, "the container format is not supported"),
    (av.error.EOFError, Reason.ENDED, "the peer closed the connection"),
)
_UNREACHABLE = frozenset((errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL))


def opening_error(error: Exception, lines: Lines, *, timed_out: bool, network: bool) -> SourceError:
    """An exception of `av.open`. `timed_out`: it took as long as it may."""
    for _, _, text in lines:
        if "Failed to resolve hostname" in text:
            return SourceError(Reason.UNREACHABLE, "the host name does not resolve")
        if "not on whitelist" in text:
            return SourceError(Reason.CODEC, "the format or a protocol inside it is not one that is served")
    known = _known(error)
    if known is not None:
        return known
    if timed_out or any("Immediate exit requested" in text for _, _, text in lines):
        return SourceError(Reason.TIMEOUT, "no answer within the time-out")
    if isinstance(error, av.error.InvalidDataError):
        if network:
            return SourceError(Reason.PROTOCOL, "what the peer sends is not understood")
        return SourceError(Reason.CODEC, "this is not a video file that is supported")
    return SourceError(Reason.ERROR, f"it cannot be opened ({_name(error)})")


def reading_error(error: Exception, *, network: bool) -> SourceError:
    """An exception while it was being read; time-outs and ends are dealt with before."""
    if network and getattr(error, "errno", None) == errno.EIO:
        return SourceError(Reason.ENDED, "the peer broke the stream off")
    return _known(error) or SourceError(Reason.ERROR, f"reading failed ({_name(error)})")


def _known(error: Exception) -> SourceError | None:
    for kind, reason, detail in _BY_CLASS:
        if isinstance(error, kind):
            return SourceError(reason, detail)
    if getattr(error, "errno", None) == errno.EPROTONOSUPPORT:
        return SourceError(Reason.PROTOCOL, "the peer refuses this transport")
    if getattr(error, "errno", None) in _UNREACHABLE:
        return SourceError(Reason.UNREACHABLE, "there is no route to the host")
    return None


def _name(error: Exception) -> str:
    code = getattr(error, "errno", None)
    return errno.errorcode.get(code, type(error).__name__) if isinstance(code, int) else type(error).__name__

"""What a client raises, and how an answer of the server becomes such an error."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class ClientError(Exception):
    """Base of all errors of the client."""


class Unreachable(ClientError):
    """No answer: the address is wrong, the server is down, or it shows a certificate that is not trusted."""


class FieldProblem(msgspec.Struct, frozen=True):
    """One field of the request that does not fit."""

    field: str
    message: str


class _Problem(msgspec.Struct):
    """RFC 9457 problem details, as far as they are there."""

    code: str = "http_error"
    detail: str = ""
    errors: list[FieldProblem] | None = None


class ApiError(ClientError):
    """The server says no. Programs go by `status` and `code`, people read `detail`."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        errors: tuple[FieldProblem, ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{detail} ({status} {code})")
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors
        """The fields at fault, where there are any."""
        self.retry_after_s = retry_after_s

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later, unchanged."""
        return self.status >= 500 or self.status in (408, 429)


class Unauthorized(ApiError):
    """401: the token is missing, wrong, expired or revoked."""


class Forbidden(ApiError):
    """403: the token's role or streams do not allow this."""


class NotFound(ApiError):
    """404: there is no such stream, model, event or picture."""


class Conflict(ApiError):
    """409: it exists already, or is in use."""


class Invalid(ApiError):
    """422: `errors` names the fields."""


_CLASSES = {401: Unauthorized, 403: Forbidden, 404: NotFound, 409: Conflict, 422: Invalid}


def api_error(status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """The error that an answer stands for. Proxies answer without problem details."""
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = _Problem()
    retry_after = next((value for name, value in headers.items() if name.lower() == "retry-after"), "")
    return _CLASSES.get(status, ApiError)(
        status,
        problem.code,
        problem.detail or f"The server answered {status}.",
        tuple(problem.errors or ()),
        float(retry_after) if retry_after.isdecimal() else None,  # the server sends no dates
    )

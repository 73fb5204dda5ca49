"""Waiting for storage that does not answer for a while: which errors pass by themselves, and how long to try.

Throttling, server errors, resets and time-outs are tried again after a random pause that doubles on average (full
jitter: https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/). What is denied or missing
is not: asking again changes nothing.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from cliffstore.access import Options, without_secrets
from cliffstore.errors import CliffstoreError, StorageError, StoreError

T = TypeVar("T")

_FIRST_SECONDS, _LONGEST_SECONDS = 0.2, 20.0
_PATIENCE_SECONDS = 300.0
_QUIET_ATTEMPTS = 4
"""Attempts after which waiting is worth a line in the log."""

_TRANSIENT_STATUS = {408, 409, 425, 429, 500, 502, 503, 504, 509}
_TRANSIENT_CODES = {
    "BadDigest", "ConditionalRequestConflict", "IncompleteBody", "InternalError", "OperationAborted",
    "RequestTimeout", "ServiceUnavailable", "SlowDown", "ThrottlingException", "XAmzContentSHA256Mismatch",
}  # fmt: skip
_TRANSIENT_ERRNO = {
    errno.EAGAIN, errno.EBUSY, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH,
    errno.EINTR, errno.ENETUNREACH, errno.EPIPE, errno.EREMOTEIO if hasattr(errno, "EREMOTEIO") else errno.EBUSY,
    errno.ETIMEDOUT,
}  # fmt: skip
_TRANSIENT_NAMES = {
    "ClientConnectorError", "ClientOSError", "ClientPayloadError", "ConnectTimeoutError", "ConnectionClosedError",
    "ConnectionError", "EndpointConnectionError", "FSTimeoutError", "HTTPClientError", "IncompleteRead",
    "IncompleteReadError", "ProtocolError", "ProxyConnectionError", "ReadTimeoutError", "ResponseStreamingError",
    "ServerDisconnectedError", "ServerTimeoutError", "ServiceRequestError", "ServiceResponseError",
    "ServiceResponseTimeoutError", "TimeoutError",
}  # fmt: skip
_TENSORSTORE_STATUS = re.compile(r"^(?:Error [^:]*: )*(ABORTED|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED)\b")
_HTTP_STATUS = re.compile(r"\[http_response_code='(\d+)'\]")

log = logging.getLogger("cliffstore.storage")


def patience_seconds() -> float:
    """Return how long an operation is tried again: CLIFFSTORE_PATIENCE, or five minutes."""
    return float(os.environ.get("CLIFFSTORE_PATIENCE", _PATIENCE_SECONDS))


def patiently(action: Callable[[], T], *, where: str, options: Options, patience: float | None = None) -> T:
    """Do something that reaches storage; where it fails in passing, do it again.

    Parameters
    ----------
    action : may be run several times; an attempt that failed may have had its effect
    where : what is reached, for the user
    options : storage options, whose secrets are kept out of messages
    patience : seconds after which the last error is raised

    Raises
    ------
    StorageError
        Storage still does not answer, or there is no room left.
    StoreError
        Access is denied, or the bucket is not there.
    """
    deadline = time.monotonic() + (patience_seconds() if patience is None else patience)
    attempt = 0
    while True:
        try:
            return action()
        except CliffstoreError:
            raise
        except Exception as error:
            attempt += 1
            reason = without_secrets(_first_line(error), options)
            if not is_transient(error):
                raised = _for_the_user(error, where, reason)
                if raised is None:
                    raise
                raise raised from None
            pause = random.uniform(0, min(_FIRST_SECONDS * 2**attempt, _LONGEST_SECONDS))
            if time.monotonic() + pause > deadline:
                raise StorageError(f"{where} does not answer ({attempt} attempts): {reason}") from None
            if attempt >= _QUIET_ATTEMPTS:
                log.warning("%s does not answer, attempt %d: %s", where, attempt, reason)
            time.sleep(pause)


def is_transient(error: BaseException) -> bool:
    """Return whether an error of storage may pass by itself."""
    return any(_passes(one) for one in _chain(error)) and not is_full(error)


def is_conflict(error: BaseException) -> bool:
    """Return whether a create-only write found something there."""
    return any(
        isinstance(one, FileExistsError)
        or _status(one) == 412
        or _code(one) in ("PreconditionFailed", "BlobAlreadyExists")
        for one in _chain(error)
    )


def is_full(error: BaseException) -> bool:
    """Return whether there is no room left where something was to be written."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return any(
        (isinstance(one, OSError) and one.errno in full) or "No space left on device" in str(one)
        for one in _chain(error)
    )


def _for_the_user(error: Exception, where: str, reason: str) -> CliffstoreError | None:
    if is_full(error):
        return StorageError(f"{where}: no space left: free some, then run the same command again to go on")
    if any(_is_denied(one) for one in _chain(error)):
        return StoreError(f"{where}: access denied ({reason}): check credentials and rights")
    if any(_code(one) == "NoSuchBucket" or type(one).__name__ == "ContainerNotFound" for one in _chain(error)):
        return StoreError(f"{where}: there is no such bucket")
    if any(type(one).__name__ in ("NoCredentialsError", "PartialCredentialsError") for one in _chain(error)):
        return StoreError(f"{where}: no credentials found: set them in the environment, or choose a profile")
    return None


def _is_denied(error: BaseException) -> bool:
    if isinstance(error, PermissionError):
        return not error.filename  # a local file's own message says more
    return _status(error) in (401, 403) or "PERMISSION_DENIED" in str(error)[:200]


def _passes(error: BaseException) -> bool:
    if isinstance(error, PermissionError | FileNotFoundError | FileExistsError):
        return False
    status = _status(error)
    if status is not None and _code(error) not in _TRANSIENT_CODES:
        return status in _TRANSIENT_STATUS
    if isinstance(error, ConnectionError | TimeoutError) or _code(error) in _TRANSIENT_CODES:
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO:
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & _TRANSIENT_NAMES) or bool(_TENSORSTORE_STATUS.search(str(error)))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from: libraries wrap what they met."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error of botocore, azure, gcsfs or tensorstore carries."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return int(status) if status else None
    for name in ("status_code", "code", "status"):
        value = getattr(error, name, None)
        if isinstance(value, int) and 100 <= value < 600:
            return value
    found = _HTTP_STATUS.search(str(error)) if isinstance(error, ValueError) else None
    return int(found.group(1)) if found else None


def _code(error: BaseException) -> str | None:
    """Return the error code that a storage service gave."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        code = response.get("Error", {}).get("Code")
        return str(code) if code else None
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code)) if code else None


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]

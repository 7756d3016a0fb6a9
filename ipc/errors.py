"""Every error draftd raises or sends, in one tree.

    DraftdError                 code                exit status
    ├── InvalidRequest          invalid_request     2
    │   └── ContextOverflow     context_overflow    2
    ├── InvalidConfig           invalid_config      2
    ├── MalformedFrame          malformed_frame     2
    ├── UnsupportedVersion      unsupported_version 2
    ├── ModelNotFound           model_not_found     4
    ├── CorruptModel            corrupt_model       4
    ├── UnsupportedModel        unsupported_model   4
    ├── OutOfMemory             out_of_memory       4
    ├── IncompatiblePair        incompatible_pair   4
    ├── DownloadFailed          download_failed     4
    ├── DiskFull                disk_full           4
    ├── EndpointInUse           endpoint_in_use     5
    ├── InvalidEndpoint         invalid_endpoint    2
    ├── Unreachable             unreachable         3
    ├── NotPermitted            not_permitted       3
    ├── EngineFailed            engine_failed       6
    ├── Overloaded              overloaded          6
    ├── SlowClient              slow_client         6
    ├── LeaseExpired            lease_expired       6
    └── Cancelled               cancelled           130

A code is stable: apps may compare it. A message is one sentence for a person and may change.
"""

from __future__ import annotations


class DraftdError(Exception):
    """Base of the tree; `code` travels in `error` messages, `exit_status` is the command line's."""

    code = "internal"
    exit_status = 1

    @property
    def message(self) -> str:
        return str(self)


class InvalidRequest(DraftdError):
    code = "invalid_request"
    exit_status = 2


class ContextOverflow(InvalidRequest):
    code = "context_overflow"


class InvalidConfig(DraftdError):
    code = "invalid_config"
    exit_status = 2


class MalformedFrame(DraftdError):
    code = "malformed_frame"
    exit_status = 2


class UnsupportedVersion(DraftdError):
    code = "unsupported_version"
    exit_status = 2


class ModelNotFound(DraftdError):
    code = "model_not_found"
    exit_status = 4


class CorruptModel(DraftdError):
    code = "corrupt_model"
    exit_status = 4


class UnsupportedModel(DraftdError):
    code = "unsupported_model"
    exit_status = 4


class OutOfMemory(DraftdError):
    code = "out_of_memory"
    exit_status = 4


class IncompatiblePair(DraftdError):
    code = "incompatible_pair"
    exit_status = 4


class DownloadFailed(DraftdError):
    code = "download_failed"
    exit_status = 4


class DiskFull(DraftdError):
    code = "disk_full"
    exit_status = 4


class EndpointInUse(DraftdError):
    code = "endpoint_in_use"
    exit_status = 5


class InvalidEndpoint(DraftdError):
    code = "invalid_endpoint"
    exit_status = 2


class Unreachable(DraftdError):
    code = "unreachable"
    exit_status = 3


class EngineFailed(DraftdError):
    code = "engine_failed"
    exit_status = 6


class NotPermitted(DraftdError):
    code = "not_permitted"
    exit_status = 3


class Overloaded(DraftdError):
    """`retry_after`: seconds after which a place is likely to be free; None: not known."""

    code = "overloaded"
    exit_status = 6

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class SlowClient(DraftdError):
    code = "slow_client"
    exit_status = 6


class LeaseExpired(DraftdError):
    code = "lease_expired"
    exit_status = 6


class Cancelled(DraftdError):
    code = "cancelled"
    exit_status = 130


def _tree(base: type[DraftdError]) -> dict[str, type[DraftdError]]:
    found = {base.code: base}
    for child in base.__subclasses__():
        found.update(_tree(child))
    return found


CODES = _tree(DraftdError)


def from_code(code: str, message: str, retry_after: float | None = None) -> DraftdError:
    """The exception that a received `error` message stands for; unknown codes keep theirs."""
    if code == Overloaded.code:
        return Overloaded(message, retry_after)
    kind = CODES.get(code)
    error = kind(message) if kind else DraftdError(message)
    if kind is None:
        error.code = code
    return error

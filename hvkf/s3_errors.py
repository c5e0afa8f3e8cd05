"""What an S3 service means by an answer: try again, what to mend, or what callers know to take."""

import os
from http.client import IncompleteRead
from typing import NamedTuple

from aiohttp import ClientError as ConnectionFault
from botocore.exceptions import (
    BotoCoreError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from hvkf.errors import BadInput, DiskFull, HvkfError
from hvkf.storage import bad_bucket

# botocore raises ValueError for an endpoint that is no address.
FAULTS = (BotoCoreError, OSError, ConnectionFault, ResponseParserError, ValueError)
TRANSIENT_FAULTS = (
    *(HTTPClientError, BotoConnectionError, ResponseParserError, ConnectionFault),
    *(IncompleteRead, ConnectionError, TimeoutError),
)
# S3's codes beside a status that alone would say "no".
TRANSIENT_CODES = {
    *("SlowDown", "InternalError", "ServiceUnavailable", "Busy", "PriorRequestNotComplete"),
    *(
        "RequestTimeout",
        "RequestTimeoutException",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
    ),
    *("Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled"),
    *("RequestThrottledException", "TooManyRequests", "TooManyRequestsException"),
    # Bytes were lost or changed on the way to the service, and it noticed.
    *("XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "BadDigest", "IncompleteBody"),
    # Two conditional writes at the same moment: neither was decided.
    *("OperationAborted", "ConditionalRequestConflict"),
}
TRANSIENT_STATUS = {408, 425, 429}
# Of a service's own failures only these will not pass: not implemented, no such HTTP, no room left.
# 520 to 529 are those of the networks before a service, as Cloudflare's.
LASTING_FAILURES = {501, 505, 507}
NO_ROOM_CODES = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"}
NO_ROOM_STATUS = 507
NOT_IMPLEMENTED = 501
HEADERS = {"IfNoneMatch": "If-None-Match", "IfMatch": "If-Match"}
WRONG_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect"}
# What callers know how to take: nothing there, a condition, a range beyond the end.
HANDLED_STATUS = {404, 409, 412, 416}
# Answers to HEAD have no body: the reason behind these is asked for by another request.
UNEXPLAINED_STATUS = {400, 403, 409}
SHOWN_LETTERS = 80
WRONG_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity"}
EXPIRED = {"ExpiredToken", "TokenRefreshRequired", "InvalidToken"}


class Answer(NamedTuple):
    """What a service said in refusing a request: S3's code ('' where it gave none) and status."""

    code: str
    status: int


def answer_of(fault: BaseException | None) -> Answer:
    """Find what the service said; no code and status 0 where it said nothing."""
    cause = getattr(fault, "__cause__", None)
    response = getattr(cause, "response", None) or getattr(fault, "response", None) or {}
    error = response.get("Error", {}) if isinstance(response, dict) else {}
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    return Answer(str(error.get("Code", "")), int(metadata.get("HTTPStatusCode", 0)))


def is_refused_condition(fault: OSError) -> bool:
    """Say whether a conditional write found its condition not met."""
    return isinstance(fault, FileExistsError) or answer_of(fault).status == 412


def is_transient(fault: BaseException) -> bool:
    """Say whether the same request may be answered in a moment."""
    code, status = answer_of(fault)
    if status:
        is_failure = status >= 500 and status not in LASTING_FAILURES
        return code in TRANSIENT_CODES or status in TRANSIENT_STATUS or is_failure
    return isinstance(fault, TRANSIENT_FAULTS)


def away_sentence(fault: BaseException, url: str) -> str:
    """Write the sentence about a service that gave no answer, or failed all the time."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    where = endpoint or "AWS itself, for AWS_ENDPOINT_URL is not set"
    return (
        f"{url} cannot be reached ({str(fault) or type(fault).__name__}): check that the S3 "
        f"service runs and that its address is right ({where}); the same command goes on from here."
    )


def no_conditions(url: str, condition: str) -> str:
    """Write the sentence about a service on which two writers could overwrite each other."""
    return (
        f"The S3 service of {url} has no conditional writes ({HEADERS[condition]}), by which "
        "workers do not overwrite each other's records: use one that has them, such as AWS S3, "
        "MinIO, SeaweedFS or R2, or a newer version."
    )


def refusal(fault: BaseException, url: str, bucket: str) -> HvkfError | None:
    """Say in words, with the fix, what was refused; None for what callers handle."""
    answer = answer_of(fault)
    if answer.status == NO_ROOM_STATUS or answer.code in NO_ROOM_CODES:
        return DiskFull(f"The S3 service of {url} has no room left: make some, or raise the quota.")
    if sentence := _configuration(fault, url) or _explanation(fault, answer, url, bucket):
        return BadInput(sentence)
    return None


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}..."


def _configuration(fault: BaseException, url: str) -> str | None:
    """Explain what was refused before anything was sent."""
    if isinstance(fault, NoCredentialsError | PartialCredentialsError):
        return (
            f"There are no AWS credentials for {url}: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the pod a Secret or a workload identity."
        )
    if isinstance(fault, BotoCoreError | ValueError):
        said = _short(" ".join(str(fault).split()))
        return f"The settings for {url} cannot be used ({said}): check the AWS_* variables."
    return None


def _explanation(fault: BaseException, answer: Answer, url: str, bucket: str) -> str | None:
    """Explain what a service refused."""
    code, status = answer
    if code == "InvalidBucketName":
        return bad_bucket(url)
    if code == "NoSuchBucket":
        return (
            f"There is no bucket {bucket!r} for {url}: create it, or mend `workspace` (and "
            "AWS_ENDPOINT_URL, which names the service)."
        )
    if code == "RequestTimeTooSkewed":
        return (
            f"The clock of this machine differs from that of the S3 service of {url} by more than "
            "it allows (15 minutes): set the clock (NTP), then run the same command."
        )
    if code in WRONG_KEYS:
        return (
            f"The S3 service of {url} does not know these AWS keys ({code}): check "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (in a cluster: the Secret of "
            "jobs.cluster.s3_secret)."
        )
    if code in EXPIRED:
        return f"The AWS credentials for {url} have expired ({code}): renew them."
    if status == 403:
        return (
            f"Access to {url} was refused ({fault}): check the AWS keys of this process and that "
            f"they may read, write, list and delete in the bucket {bucket!r}."
        )
    if code in WRONG_REGION or status in (301, 307):
        return (
            f"The bucket {bucket!r} of {url} lies in another region ({code}): set "
            "AWS_DEFAULT_REGION to it (and AWS_ENDPOINT_URL, where it names a region)."
        )
    if status and status not in HANDLED_STATUS:
        return (
            f"The S3 service of {url} refused a request ({status}, {_short(str(fault))}): see that "
            "AWS_ENDPOINT_URL names an S3 service, and that it can do what hvkf asks."
        )
    return None

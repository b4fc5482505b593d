"""HTTP requests to the Gateway, with retries. Every request is safe to repeat."""

import random
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import BaseModel
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_exponential

from qmtl_sdk.contracts.errors import CODES, QmtlError

NOT_A_GATEWAY = "not_a_gateway"
"""The detail of an error for an answer that is not a Gateway's and has no 5xx status.

It is not retried at once, as the same request gets the same answer.
"""

# Pauses between attempts, in seconds.
_EXPONENTIAL = wait_exponential(0.1, max=1.0)


# Seconds of retries before a request fails with E_UNAVAILABLE: longer than a restart of the Gateway.
_RETRY_LIMIT_S = 30.0

# Seconds in which one answer must arrive: longer than any route waits.
_ANSWER_LIMIT_S = 90.0


class Transport:
    """One connection pool to one Gateway.

    Raises QmtlError: the Gateway's own error under its code; E_UNAVAILABLE where the Gateway can't be reached
    for `away_limit_s` seconds, does not answer within `answer_limit_s`, or something else answers at its
    address (at once, unless its answer is readable and has a 5xx status). A rate-limited request (E_RATE) is
    retried after the pause that the Gateway names.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        away_limit_s: float = _RETRY_LIMIT_S,
        answer_limit_s: float = _ANSWER_LIMIT_S,
    ) -> None:
        self.url = url.rstrip("/")
        self.token = token
        self._retry_limit_s = away_limit_s
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(
            base_url=self.url,
            timeout=httpx.Timeout(answer_limit_s, connect=min(5.0, answer_limit_s)),
            headers=headers,
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, path: str, body: BaseModel | None = None, **options: Any) -> Any:
        """Send a request; return the decoded JSON. (Any: each route has its own type, set by its method.)"""
        if body is not None:
            options["content"] = body.model_dump_json()
            options["headers"] = {**options.get("headers", {}), "content-type": "application/json"}
        response = self._send(method, path, **options)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise _not_a_gateway(response) from error

    def _send(
        self, method: str, path: str, patience_s: float | None = None, **options: Any
    ) -> httpx.Response:
        stop = stop_after_delay(self._retry_limit_s if patience_s is None else patience_s)
        try:
            for attempt in Retrying(
                retry=retry_if_exception(_retryable), wait=_pause, stop=stop, reraise=True
            ):
                with attempt:
                    response = self._http.request(method, path, **options)
                    if not response.is_success:  # a redirection is no answer of a Gateway
                        raise refusal(response)
        except httpx.DecodingError as error:
            raise QmtlError(
                "E_UNAVAILABLE",
                f"{self.url} sent an answer that can't be decoded: {error}",
                "check that gateway.url names a QMTL Gateway, and no proxy or other server",
            ) from error
        except httpx.RequestError as error:
            raise self._unreachable(error) from error
        return response

    def _unreachable(self, error: httpx.RequestError) -> QmtlError:
        return QmtlError(
            "E_UNAVAILABLE",
            f"the Gateway at {self.url} can't be reached: {error}",
            "qmtl status shows what runs; qmtl up starts it",
        )


def live_header(live: bool) -> dict[str, str]:
    """Return the header that permits an action on live orders."""
    return {"X-Allow-Live": "true"} if live else {}


def _retryable(error: BaseException) -> bool:
    if isinstance(error, QmtlError):
        return error.code in ("E_UNAVAILABLE", "E_RATE") and not error.details.get(NOT_A_GATEWAY)
    return isinstance(error, httpx.TransportError)


def _pause(state: RetryCallState) -> float:
    """Return the pause before the next attempt, in seconds: the Gateway's `retry_after`, else exponential."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, QmtlError) and "retry_after" in error.details:
        # The random factor spreads out callers that were refused at the same time.
        return min(5.0, float(error.details["retry_after"]) * random.uniform(1, 2))  # noqa: S311
    return _EXPONENTIAL(state)


def refusal(response: httpx.Response) -> QmtlError:
    """Return the error that an answer describes. A proxy may answer as well, with anything."""
    try:
        body = response.json()
        code = body["code"] if body["code"] in CODES else "E_INTERNAL"
        return QmtlError(code, body["detail"], body.get("remedy", ""), **body.get("details", {}))
    except (ValueError, KeyError, TypeError):
        return _not_a_gateway(response)


def _not_a_gateway(response: httpx.Response) -> QmtlError:
    """Return the error of an answer that is not a Gateway's.

    One with a 5xx status may be a proxy's whose Gateway restarts, so it is retried here. Any other fails at
    once, and a running strategy sends its request again later.
    """
    place = response.url.copy_with(username=None, password=None, query=None)
    return QmtlError(
        "E_UNAVAILABLE",
        f"{place} answered {response.status_code}, and not as a Gateway does",
        "check that gateway.url names a QMTL Gateway, and no proxy or other server",
        **({} if response.is_server_error else {NOT_A_GATEWAY: True}),
    )

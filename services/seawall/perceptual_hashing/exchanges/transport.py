"""HTTP to an exchange, with bounds.

The clients of the `threatexchange` library speak through this session. It holds what theirs leave open: every request
has a time limit and a largest answer, redirects are not followed (they could carry credentials elsewhere), Retry-After
is obeyed up to a bound, and an error names host and status, never a URL, which may hold a token, nor a body.
"""

from __future__ import annotations

import email.utils
import random
import time
import urllib.parse
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Final

import requests
from pydantic import Field

from seawall.core.errors import Fatal, Poison, Retryable
from seawall.runtime.settings import ByteCount, Group, Seconds

_RETRIED: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_CHUNK: Final = 64 * 1024
_CREDENTIALS: Final = frozenset({401, 403})


class HttpSettings(Group):
    """How an exchange is asked."""

    # Until the connection stands, and between two pieces of an answer.
    timeout_seconds: Seconds = 60.0
    # The whole of one answer may take.
    answer_seconds: Seconds = 300.0
    # A larger answer is refused.
    max_answer_bytes: ByteCount = 64 * 1024 * 1024
    # Attempts of one request, the first included.
    attempts: int = Field(default=5, ge=1, le=20)
    # Pause after the first failure; it doubles with each, with jitter, up to the second value.
    pause_seconds: Seconds = 1.0
    max_pause_seconds: Seconds = 60.0
    # The longest Retry-After that is waited for. Beyond it the pull ends, keeps what it has, and says when to return.
    max_retry_after_seconds: Seconds = 300.0


def check_url(url: str) -> str:
    """``url`` without a slash at its end. Raises Fatal("NO_TLS") unless it is https, or plain http on this machine."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    if parts.username is not None or parts.query or parts.fragment:
        raise Fatal("BAD_URL", f"the address of {host} must be scheme, host and path alone: credentials go elsewhere")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise Fatal("NO_TLS", f"the address of {host or 'the exchange'} must begin with https://")
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class BoundedSession(requests.Session):
    """A session of `requests` with the bounds above; what it returns has been read whole and is a success."""

    def __init__(
        self,
        settings: HttpSettings,
        base_url: str,
        *,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self._settings = settings
        self._base = urllib.parse.urlsplit(check_url(base_url))
        self._sleep = sleep
        self._now = now
        # The environment may say which authorities and proxies to use. Not which credentials: with none of its own, a
        # session would look into .netrc.
        self.auth = _as_it_is

    def request(self, method: str, url: str | bytes, *args: Any, **keywords: Any) -> requests.Response:
        """As `requests.Session.request`, with retries.

        Raises:
            Retryable: ``EXCHANGE_UNAVAILABLE``, ``RATE_LIMITED``.
            Fatal: ``EXCHANGE_CREDENTIALS``, ``EXCHANGE_TLS``, ``EXCHANGE_REFUSED``.
            Poison: ``ANSWER_TOO_LARGE``.
        """
        host = self._check_host(str(url))
        keywords.update(stream=True, allow_redirects=False, timeout=self._settings.timeout_seconds)
        attempt = 0
        while True:
            attempt += 1
            last = attempt >= self._settings.attempts
            wait: float | None = None
            try:
                response = super().request(method, url, *args, **keywords)
                try:
                    status = response.status_code
                    if status < 300:
                        return self._read(response, host)
                    if status not in _RETRIED:
                        raise _refusal(status, host)
                    wait = self._retry_after(response, host)
                    problem = "RATE_LIMITED" if status == 429 else "EXCHANGE_UNAVAILABLE"
                    said = f"answered {status}"
                finally:
                    response.close()
            except requests.exceptions.SSLError:
                raise Fatal(
                    "EXCHANGE_TLS",
                    f"{host}: the certificate cannot be verified: see the clock, the system's "
                    "authorities and REQUESTS_CA_BUNDLE",
                ) from None
            except (requests.exceptions.RequestException, OSError) as error:
                problem, said = "EXCHANGE_UNAVAILABLE", type(error).__name__
            if last:
                # `from None`: the causes' messages hold the whole URL.
                raise Retryable(problem, f"{host}: {said}, {attempt} times: run the pull again later") from None
            self._sleep(self._pause(attempt) if wait is None else wait)

    def _check_host(self, url: str) -> str:
        parts = urllib.parse.urlsplit(url)
        base = self._base
        if (parts.scheme, parts.netloc) != (base.scheme, base.netloc):
            raise Fatal(
                "EXCHANGE_REFUSED", f"{base.hostname}: the exchange names another host as its next page: not followed"
            )
        return base.hostname or ""

    def _read(self, response: requests.Response, host: str) -> requests.Response:
        settings = self._settings
        end = time.monotonic() + settings.answer_seconds
        parts, size = [], 0
        for part in response.iter_content(_CHUNK):
            size += len(part)
            if size > settings.max_answer_bytes:
                raise Poison("ANSWER_TOO_LARGE", f"{host}: an answer is larger than {settings.max_answer_bytes} bytes")
            if time.monotonic() > end:
                raise requests.exceptions.ReadTimeout
            parts.append(part)
        response._content = b"".join(parts)
        return response

    def _retry_after(self, response: requests.Response, host: str) -> float | None:
        header = response.headers.get("Retry-After", "").strip()
        if not header:
            return None
        if header.isdigit():
            seconds = float(header[:12])
        else:
            try:
                seconds = email.utils.parsedate_to_datetime(header).timestamp() - self._now()
            except (ValueError, OverflowError):
                return None
        if seconds > self._settings.max_retry_after_seconds:
            raise Retryable(
                "RATE_LIMITED",
                f"{host}: asks to come back in {seconds:.0f} s, more than max_retry_after_seconds "
                f"({self._settings.max_retry_after_seconds:.0f}): run the pull again then",
            )
        return max(0.0, seconds)

    def _pause(self, attempt: int) -> float:
        settings = self._settings
        longest = min(settings.pause_seconds * 2.0 ** (attempt - 1), settings.max_pause_seconds)
        return longest * random.uniform(0.5, 1.0)


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _refusal(status: int, host: str) -> Fatal:
    if status in _CREDENTIALS:
        return Fatal(
            "EXCHANGE_CREDENTIALS",
            f"{host}: answered {status}: the credentials are wrong, expired or not for this environment: renew them",
        )
    if 300 <= status < 400:
        return Fatal("EXCHANGE_REFUSED", f"{host}: answered {status}, a redirect: correct the address in settings")
    return Fatal("EXCHANGE_REFUSED", f"{host}: answered {status}: see the exchange's environment and settings")

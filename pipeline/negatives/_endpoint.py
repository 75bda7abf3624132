"""An OpenAI-compatible endpoint, asked patiently: paced, retried, and never telling its key."""

from __future__ import annotations

import os
import random
import threading
import time
from dataclasses import dataclass
from typing import Any

from ...errors import InputError, RemoteError, UsageError
from ...workspace import CREDENTIALS

LONGEST_WAIT = 120.0  # seconds between two tries, whatever the server asks for
KEPT = "Run the same command again: what was answered is in the journal and is not asked again."


class Stopped(Exception):
    """The run ends; a request that waits for its turn is not sent."""


@dataclass(frozen=True)
class Answer:
    """A completion: its text, why it ended ("stop", "length", "content_filter"), and its tokens."""

    text: str
    finish: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Limits:
    """How an endpoint is asked.

    timeout           seconds to wait for an answer
    retries           how often a request is sent again after 408, 409, 429, 5xx, a lost or a garbled answer
    backoff           seconds before the first of them; doubled each time, with jitter
    requests, tokens  per minute, 0 for no limit
    """

    timeout: float = 60.0
    retries: int = 6
    backoff: float = 1.0
    requests: float = 0.0
    tokens: float = 0.0


class Pace:
    """Spreads an amount per minute evenly: `wait` returns when that much more may be used."""

    def __init__(self, per_minute: float, stop: threading.Event) -> None:
        self._seconds = 60.0 / per_minute if per_minute else 0.0
        self._stop, self._lock, self._next = stop, threading.Lock(), 0.0

    def wait(self, amount: float = 1.0) -> None:
        """Wait for the turn of `amount`. Raises `Stopped`."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + amount * self._seconds
        if self._stop.wait(turn - now) if turn > now else self._stop.is_set():
            raise Stopped


class Endpoint:
    """Chat completions of one model at an OpenAI-compatible URL; the key is in the environment variable named.

    Raises `UsageError` for a URL that holds secrets, `InputError` without the client or the key.
    """

    def __init__(self, base_url: str, model: str, key_variable: str, limits: Limits) -> None:
        check_url(base_url)
        try:
            import openai
        except ImportError:
            raise InputError("llm needs the openai client", 'Install it: pip install "compal[llm]"') from None
        key = os.environ.get(key_variable, "")
        if not key and not base_url:
            raise InputError(f"the environment variable {key_variable} is not set", "Set it to the endpoint's key.")
        self._errors = openai
        self._client = openai.OpenAI(
            base_url=base_url or None, api_key=key or "none", timeout=limits.timeout, max_retries=0
        )
        self._model, self._retries, self._backoff = model, limits.retries, limits.backoff
        self.stop = threading.Event()
        self._requests, self._tokens = Pace(limits.requests, self.stop), Pace(limits.tokens, self.stop)
        self._jitter = random.Random()

    def close(self) -> None:
        """Send nothing more, and close the connections."""
        self.stop.set()
        self._client.close()

    def complete(self, system: str, user: str, tokens: int, **options: Any) -> Answer:
        """One completion. `tokens` is what it will take by estimate. Raises `RemoteError` for what trying again does
        not cure, or has not; `Stopped`."""
        problem, asked = "", 0.0
        for attempt in range(self._retries + 1):
            if attempt:
                self._pause(attempt, asked)
            self._requests.wait()
            self._tokens.wait(tokens)
            try:
                return self._once(system, user, options)
            except _Again as error:
                problem, asked = str(error), error.wait
        raise RemoteError(f"{self._model} failed {self._retries + 1} times, at last with {problem}", KEPT)

    def _pause(self, attempt: int, asked: float) -> None:
        wait = asked or self._backoff * 2.0 ** (attempt - 1) * self._jitter.uniform(0.5, 1.5)
        if self.stop.wait(min(wait, LONGEST_WAIT)):
            raise Stopped

    def _once(self, system: str, user: str, options: dict[str, Any]) -> Answer:
        openai = self._errors
        messages: Any = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        try:
            found = self._client.chat.completions.create(model=self._model, messages=messages, **options)
        except openai.APITimeoutError:
            raise _Again("no answer in time") from None
        except openai.APIStatusError as error:
            return _judged(error)
        except openai.APIConnectionError as error:
            raise _Again(f"a lost connection ({type(error.__cause__ or error).__name__})") from None
        except (openai.APIError, ValueError):  # JSON that ends early, or is none
            raise _Again("an answer that is not JSON") from None
        return _read(found)


class _Again(Exception):
    """Worth another try, after `wait` seconds if the server said how long."""

    def __init__(self, problem: str, wait: float = 0.0) -> None:
        super().__init__(problem)
        self.wait = wait


def check_url(base_url: str) -> None:
    """Raises `UsageError` for a URL that holds a password or a query, in which keys hide: URLs are kept."""
    if CREDENTIALS.match(base_url) or "?" in base_url:
        raise UsageError(
            "base_url holds a password or a query", "Give the plain URL; the key goes into the environment."
        )
    if base_url and not base_url.startswith(("http://", "https://")):
        raise UsageError("base_url is no URL", "Example: --set base_url=http://localhost:8000/v1")


def _judged(error: Any) -> Answer:
    """What an error status means: an answer that was filtered, another try, or the end."""
    status, code = error.status_code, str(getattr(error, "code", "") or "")
    if status == 400 and "content" in code and "filter" in code:
        return Answer("", "content_filter", 0, 0)
    if (status in (408, 409, 429) and code != "insufficient_quota") or status >= 500:
        raise _Again(f"status {status}", _seconds(error.response.headers.get("retry-after", "")))
    cures = {
        401: "Check the key in the environment variable.",
        403: "Check the key in the environment variable.",
        404: "Check base_url and model.",
        429: "The account has no credit left.",
    }
    what = f"the endpoint refused with status {status} {code}".strip()
    raise RemoteError(what, cures.get(status, "Check the settings."))


def _seconds(text: str) -> float:
    try:
        return max(0.0, float(text))
    except ValueError:  # a date, or nothing
        return 0.0


def _read(found: Any) -> Answer:
    """The one choice of a completion. More of them, none, or no text is garbled."""
    choices = getattr(found, "choices", None)
    if not isinstance(choices, list) or len(choices) != 1:
        raise _Again(f"{len(choices) if isinstance(choices, list) else 'no'} choices for one")
    finish = str(getattr(choices[0], "finish_reason", "") or "")
    text = getattr(getattr(choices[0], "message", None), "content", None)
    if not isinstance(text, str):
        if finish == "content_filter" or getattr(getattr(choices[0], "message", None), "refusal", None):
            return Answer("", "content_filter", 0, 0)
        raise _Again("an answer without text")
    usage = getattr(found, "usage", None)
    counts = [getattr(usage, name, 0) or 0 for name in ("prompt_tokens", "completion_tokens")]
    return Answer(text, finish, *(count if isinstance(count, int) else 0 for count in counts))

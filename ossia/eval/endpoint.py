"""A model behind an endpoint with OpenAI's Chat Completions: a hosted one, or another program's.

What fails in passing is asked again: lost connections, 429, 5xx. A wait that the server asks for
(Retry-After) holds back every thread's next request.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ossia.errors import OssiaError, brief
from ossia.eval.answers import Asked, Call, Message, Turn, Unanswered, Usage

KEY_VARIABLE = "OSSIA_EVAL_API_KEY"
_OPENAI = ("api.openai.com", "OPENAI_API_KEY")
_IN_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_FOR_ALL = frozenset({401, 402, 403, 404, 405})  # no question will be answered
_LONGEST_WAIT = 600.0
_MOST_BYTES = 1 << 26
_REASONING_KEYS = ("reasoning_content", "reasoning")


def is_endpoint(name: str) -> bool:
    """Whether a model's name is that of an endpoint."""
    return name.lower().startswith(("http://", "https://"))


@dataclass(frozen=True)
class Patience:
    """seconds: until a request without a whole reply counts as lost. retries: how often a request
    is made again. first_wait: seconds before the first of them, doubled with each.
    """

    seconds: float = 1800.0
    retries: int = 8
    first_wait: float = 1.0


class Endpoint:
    """name: such as http://localhost:8000/v1#gpt-oss-20b. sampling: fields of the request. The key
    is read from OSSIA_EVAL_API_KEY, or from OPENAI_API_KEY for OpenAI's own host alone.

    Raises OssiaError for a name without its parts.
    """

    def __init__(
        self, name: str, sampling: Mapping[str, Any], patience: Patience = Patience()
    ) -> None:
        url, _, model = name.partition("#")
        host = urlsplit(url).hostname
        if not model or not host:
            raise OssiaError(f"{name}: an endpoint is named like http://localhost:8000/v1#MODEL")
        self._url, self._model = f"{url.rstrip('/')}/chat/completions", model
        variables = [_OPENAI[1], KEY_VARIABLE] if host == _OPENAI[0] else [KEY_VARIABLE]
        self._key = next((key for v in variables if (key := os.environ.get(v))), None)
        self._sampling, self._patience = dict(sampling), patience
        self._gate = _Gate()
        self._limit_key = "max_completion_tokens"

    def turn(self, asked: Asked, messages: Sequence[Message]) -> Turn:
        """See Model."""
        return _turn(self._request(asked, messages))

    def close(self) -> None:
        """See Model. Requests that wait to be made again are not."""
        self._gate.closed.set()

    def _body(self, asked: Asked, messages: Sequence[Message]) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self._model, "messages": [*messages], **self._sampling}
        limit = body.pop("max_tokens", None) if asked.max_tokens is None else asked.max_tokens
        if limit is not None:
            body[self._limit_key] = limit
        if body.get("seed") is not None:
            body["seed"] += asked.repeat
        if asked.effort is not None:
            body["reasoning_effort"] = asked.effort
        if asked.tools:
            body["tools"] = [*asked.tools]
        return body

    def _request(self, asked: Asked, messages: Sequence[Message]) -> dict[str, Any]:
        """The reply to a request, made again until it succeeds. Raises Unanswered if it never does
        or is refused, OssiaError if all would be.
        """
        problem, wait = "", self._patience.first_wait
        for attempt in range(self._patience.retries + 1):
            if attempt:
                self._gate.pause(wait * random.uniform(0.5, 1.0))
                wait = min(2 * wait, 60.0)
            self._gate.wait()
            try:
                return self._post(self._body(asked, messages))
            except _Status as status:
                if status.code == 400 and self._limit_key in status.message and attempt == 0:
                    self._limit_key = "max_tokens"  # of servers that know the older name alone
                    continue
                problem = status.describe()
                if status.code in _FOR_ALL or status.out_of_money:
                    raise OssiaError(f"{self._url}: {problem}") from status
                if status.code not in _IN_PASSING:
                    raise Unanswered(problem) from status
                if status.retry_after is not None:
                    self._gate.hold(status.retry_after)
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = brief(error) if str(error) else type(error).__name__
        raise Unanswered(f"{problem} ({self._patience.retries + 1} attempts)")

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        """Raises _Status for an error of HTTP, OSError for a connection that fails, ValueError for
        what is not a whole reply.
        """
        headers = {"Content-Type": "application/json", "User-Agent": "ossia-eval"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = json.dumps(body).encode()
        request = urllib.request.Request(self._url, data, headers)
        deadline = time.monotonic() + self._patience.seconds
        try:
            with urllib.request.urlopen(request, timeout=self._patience.seconds) as response:
                return json.loads(_read(response, deadline))
        except urllib.error.HTTPError as error:
            with error:
                raise _Status(error.code, dict(error.headers), error.read(1 << 16)) from error


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The whole body, from a server that may send it byte by byte or stop."""
    expected, received = response.headers.get("Content-Length"), bytearray()
    while piece := response.read1(1 << 16):
        received += piece
        if time.monotonic() > deadline:
            raise TimeoutError("the reply took too long")
        if len(received) > _MOST_BYTES:
            raise ValueError(f"the reply has more than {_MOST_BYTES >> 20} MiB")
    if expected is not None and len(received) < int(expected):
        raise ConnectionError("the reply was cut off")
    return bytes(received)


class _Gate:
    """When requests may be made; shared by the threads of an endpoint."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self._opens = 0.0

    def hold(self, seconds: float) -> None:
        """Let no request pass for so long."""
        with self._lock:
            self._opens = max(self._opens, time.monotonic() + min(seconds, _LONGEST_WAIT))

    def wait(self) -> None:
        """Until requests may be made. Raises Unanswered if the endpoint is closed meanwhile."""
        while (rest := self._opens - time.monotonic()) > 0:
            self.pause(rest)
        self.pause(0)

    def pause(self, seconds: float) -> None:
        if self.closed.wait(seconds):
            raise Unanswered("the run ended")


class _Status(Exception):
    """An answer that is an error of HTTP."""

    def __init__(self, code: int, headers: Mapping[str, str], body: bytes) -> None:
        self.code, self.message = code, body.decode(errors="replace")
        named = {name.lower(): value for name, value in headers.items()}
        self.retry_after = _seconds(named.get("retry-after"))
        self.out_of_money = "insufficient_quota" in self.message
        super().__init__(self.message)

    def describe(self) -> str:
        """The status and the server's own words."""
        try:
            error = json.loads(self.message)
            error = error.get("error", error.get("detail", error))
            words = error.get("message", error) if isinstance(error, dict) else error
        except (ValueError, AttributeError):
            words = self.message
        return f"HTTP {self.code}: {brief(words)}" if self.message else f"HTTP {self.code}"


def _seconds(retry_after: str | None, now: Callable[[], float] = time.time) -> float | None:
    """Of a Retry-After header: seconds, or a date."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - now())
    except ValueError:
        return None


def _turn(reply: dict[str, Any]) -> Turn:
    """A Chat Completions reply. Raises Unanswered if it is none."""
    try:
        choice = reply["choices"][0]
        message = choice["message"]
        content, named = message.get("content") or "", message.get("tool_calls") or ()
        calls = tuple(
            Call(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in named
        )
        usage = _usage(reply.get("usage") or {})
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Unanswered(f"not a chat completion: {brief(json.dumps(reply))}") from error
    key = next((key for key in _REASONING_KEYS if message.get(key)), None)
    reasoning = str(message[key]) if key else ""
    if not reasoning:
        reasoning, content = _split(content)
    sent: dict[str, Any] = {"role": "assistant", "content": content}
    if key:  # a server that gives it takes it back, and needs it before the results of calls
        sent[key] = reasoning
    if named:
        sent["tool_calls"] = [*named]
    if usage.reasoning == 0 and reasoning:
        usage = Usage(usage.prompt, usage.cached, usage.completion, None)
    finish = str(choice.get("finish_reason") or "stop")
    malformed = (finish == "stop" and not content and not calls) or not all(map(_is_json, calls))
    return Turn(sent, content, reasoning, finish, usage, calls, malformed)


def _usage(given: Mapping[str, Any]) -> Usage:
    prompt = given.get("prompt_tokens_details") or {}
    completion = given.get("completion_tokens_details") or {}
    return Usage(
        int(given.get("prompt_tokens") or 0),
        int(prompt.get("cached_tokens") or 0),
        int(given.get("completion_tokens") or 0),
        int(completion.get("reasoning_tokens") or 0),
    )


def _split(content: str) -> tuple[str, str]:
    """Reasoning in tags before the answer, from servers that leave it there."""
    before, end, after = content.rpartition("</think>")
    if end:
        return before.strip().removeprefix("<think>").strip(), after.strip()
    if content.lstrip().startswith("<think>"):  # cut off within it
        return content.strip().removeprefix("<think>").strip(), ""
    return "", content


def _is_json(call: Call) -> bool:
    try:
        return isinstance(json.loads(call.arguments), dict)
    except (ValueError, RecursionError, TypeError):
        return False

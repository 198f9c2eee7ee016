"""Where notices come from: the metadata service of a cloud's machine, or a file."""

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import IO, Protocol, TypeVar

from raytrain_plus.nodes import notices
from raytrain_plus.nodes.notices import Notice, NoticeError

URL = "http://169.254.169.254"  # of both clouds, from the machine itself only

_SECONDS = 2.0  # for an answer
_PROBE_SECONDS = 1.0
_TOKEN_SECONDS = 21600  # that EC2 is asked for, the most that it gives
_WAIT_SECONDS = 60  # after which Compute Engine answers though nothing has changed
_MOST_BYTES = 65536
_UNAUTHORIZED = 401
_FLAVOR = {"Metadata-Flavor": "Google"}
# A machine's own service: no proxy lies between.
_OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

_Told = TypeVar("_Told")


class NoticeSource(Protocol):
    """Something that may have a notice of preemption.

    Attributes:
        name: for people.
        pause: seconds between two looks.
    """

    name: str
    pause: float

    def look(self) -> Notice | None:
        """Return the notice if there is one; may wait for it.

        Raises:
            OSError: it does not answer.
            NoticeError: it answers something else.
        """


@dataclass(frozen=True)
class Answer:
    """What a metadata service answers: status, text, and headers by their names in lower case."""

    status: int
    body: str
    headers: Mapping[str, str]


@dataclass
class Ec2:
    """EC2's instance metadata service, version 2.

    Attributes:
        url: where it is.
        rebalance: whether a recommendation to leave counts as a notice, too.
    """

    url: str = URL
    rebalance: bool = True
    name: str = "EC2"
    pause: float = 2.0  # AWS recommends to look every 5 s; each look takes milliseconds
    _token: str = field(default="", init=False)

    def is_here(self) -> bool:
        """Say whether this is a machine of EC2."""
        return bool(_try(lambda: self._fetch_token(_PROBE_SECONDS)))

    def look(self) -> Notice | None:
        """Return a notice, if there is one; see NoticeSource."""
        answer = self._get("spot/instance-action")
        notice = notices.ec2_action(answer.status, answer.body, time.time())
        if notice is not None or not self.rebalance:
            return notice
        answer = self._get("events/recommendations/rebalance")
        return notices.ec2_rebalance(answer.status, answer.body, time.time())

    def _get(self, path: str) -> Answer:
        answer = self._with_token(path)
        if answer.status == _UNAUTHORIZED:  # the token has expired
            self._token = ""
            answer = self._with_token(path)
        return answer

    def _with_token(self, path: str) -> Answer:
        self._token = self._token or self._fetch_token(_SECONDS)
        token = {"X-aws-ec2-metadata-token": self._token}
        return _ask(f"{self.url}/latest/meta-data/{path}", token)

    def _fetch_token(self, seconds: float) -> str:
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
        answer = _ask(f"{self.url}/latest/api/token", lifetime, seconds, method="PUT")
        if answer.status != 200 or not answer.body:
            raise NoticeError(f"no token: status {answer.status}")
        return answer.body


@dataclass
class Gce:
    """Compute Engine's metadata server, which answers when something changes."""

    url: str = URL
    name: str = "Compute Engine"
    pause: float = 1.0
    wait: int = _WAIT_SECONDS
    _etag: str = field(default="0", init=False)

    def is_here(self) -> bool:
        """Say whether this is a machine of Compute Engine."""
        answer = _try(lambda: _ask(self.url, _FLAVOR, _PROBE_SECONDS))
        return answer is not None and answer.headers.get("metadata-flavor") == "Google"

    def look(self) -> Notice | None:
        """Return a notice, if there is one, or when there is one; see NoticeSource."""
        path = "computeMetadata/v1/instance/preempted"
        query = f"wait_for_change=true&timeout_sec={self.wait}&last_etag={self._etag}"
        answer = _ask(f"{self.url}/{path}?{query}", _FLAVOR, self.wait + _SECONDS)
        self._etag = answer.headers.get("etag", "0")
        return notices.gce_preempted(answer.status, answer.body, time.time())


@dataclass
class NoticeFile:
    """A file that a script of the machine writes when the machine will be preempted.

    Attributes:
        path: of the file.
        grace: seconds to the end, if the file names none.
    """

    path: Path
    grace: float
    name: str = "the notice file"
    pause: float = 1.0

    def look(self) -> Notice | None:
        """Return the notice, if the file is there; see NoticeSource."""
        try:
            with self.path.open("rb") as file:
                text, written = file.read(_MOST_BYTES).decode(), self.path.stat().st_mtime
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            raise NoticeError(f"{self.path} is no text") from None
        return notices.file_notice(text, written, self.grace)


def notice_source(
    provider: str, url: str | None = None, *, rebalance: bool = True
) -> NoticeSource | None:
    """Return the source of a machine's notices.

    Args:
        provider: `ec2`, `gce`, `none`, or `auto`: whichever answers.
        url: of its metadata service, if elsewhere.
        rebalance: whether EC2's recommendation to leave counts as a notice.

    Raises:
        NoticeError: there is no such provider.
    """
    ec2, gce = Ec2(url or URL, rebalance), Gce(url or URL)
    named: dict[str, NoticeSource | None] = {"ec2": ec2, "gce": gce, "none": None}
    if provider == "auto":
        return ec2 if ec2.is_here() else gce if gce.is_here() else None
    if provider not in named:
        raise NoticeError(f"provider {provider!r} is none of auto, {', '.join(named)}")
    return named[provider]


def _ask(
    url: str, headers: Mapping[str, str], seconds: float = _SECONDS, method: str = "GET"
) -> Answer:
    request = urllib.request.Request(url, headers=dict(headers), method=method)  # noqa: S310
    try:
        with _OPEN(request, timeout=seconds) as response:
            return Answer(response.status, _text(response), _lower(response.headers))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, _text(error), _lower(error.headers))
    except HTTPException as error:
        raise OSError(f"it does not speak HTTP: {error!r}") from error


def _text(response: IO[bytes]) -> str:
    return response.read(_MOST_BYTES).decode(errors="replace")


def _lower(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _try(ask: Callable[[], _Told]) -> _Told | None:
    try:
        return ask()
    except (OSError, NoticeError):
        return None

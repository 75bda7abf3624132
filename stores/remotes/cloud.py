"""Object storage as a remote: S3 and what speaks its language, Google Cloud Storage, Azure; through obstore.

Credentials come from the environment, from boto3's profiles where boto3 is installed, or from the machine.
A request is tried again by obstore (5xx, dropped connections) and by us (truncated bodies, timeouts of puts):
every put of ours may be repeated, since equal bytes under an equal name are the same commit.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ...errors import CompalError, RemoteError, UsageError, VerificationError
from ...workspace import Remote
from ..files import check_relative
from .objects import AGAIN

T = TypeVar("T")
ATTEMPTS = 6
BACKOFF, LONGEST = 0.1, 5.0  # seconds
STREAM = 1 << 22  # bytes: smaller blocks cost Python time, larger ones memory
CONFIG = {
    "endpoint": "endpoint",
    "region": "region",
    "anonymous": "skip_signature",
    "virtual_hosted": "virtual_hosted_style_request",
    "account": "account_name",
}
BUCKET = "Check the URL of the remote, or make the bucket."
LOGIN = (
    "Log in: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (GOOGLE_…, AZURE_… elsewhere), or AWS_PROFILE with "
    "pip install 'compal[s3]'; or ask its owner."
)


_process = 0  # that used obstore first


class CloudObjects:
    """See `Objects`. Not for a process that was forked after its parent used one: obstore's threads are not
    there, and it would wait for them for ever."""

    threads = 4

    def __init__(self, remote: Remote) -> None:
        from obstore.store import from_url

        make: Any = from_url  # its overloads cannot say which scheme a URL has
        self.url, options = remote.url, remote.options
        config = {CONFIG[key]: value for key, value in options.items() if key in CONFIG}
        extra: dict[str, Any] = {}
        if urlsplit(self.url).scheme == "s3":
            config.setdefault("region", os.environ.get("AWS_REGION", os.environ.get("AWS_DEFAULT_REGION", "us-east-1")))
            extra = _profile() if not options.get("anonymous") else {}
        if str(options.get("endpoint", "")).startswith("http://") and not options.get("allow_http"):
            cure = f"If that is meant: [remote_options.{remote.name}] allow_http = true"
            raise UsageError(f"the endpoint of {self.url} is without TLS", cure)
        wait = float(options.get("timeout", 60))
        retries = int(options.get("retries", 5))
        self._attempts = min(ATTEMPTS, retries + 1)
        try:
            # `timeout` bounds a whole request, body included: a part may take long, silence may not.
            self.store: Any = make(
                self.url,
                config=config,
                client_options={
                    "allow_http": bool(options.get("allow_http")),
                    "timeout": timedelta(seconds=max(900, wait)),
                    "connect_timeout": timedelta(seconds=min(10, wait)),
                    "read_timeout": timedelta(seconds=wait),
                },
                retry_config={
                    "max_retries": retries,
                    "retry_timeout": timedelta(seconds=max(4 * wait, 10)),
                    "backoff": {
                        "init_backoff": timedelta(seconds=BACKOFF / 2),
                        "max_backoff": timedelta(seconds=LONGEST),
                        "base": 2,
                    },
                },
                **extra,
            )
        except Exception as error:  # obstore's errors and ValueError
            raise RemoteError(
                f"{self.url} is not a usable remote: {_line(error)}", "Check its URL and options."
            ) from None

    def get(self, path: str, limit: int) -> bytes | None:
        """See `Objects.get`."""
        import obstore

        def work() -> bytes:
            found = obstore.get(self.store, path)
            if found.meta["size"] > limit:
                raise RemoteError(f"{self.url}/{path} has more than {limit} bytes", "It is not what compal writes.")
            data = bytes(found.bytes())
            if len(data) != found.meta["size"]:
                raise OSError(f"{len(data)} of {found.meta['size']} bytes arrived")
            return data

        return self._try(path, work, None)

    def get_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Objects.get_ranges`."""
        import obstore

        starts, stops = [start for start, _ in ranges], [stop for _, stop in ranges]

        def work() -> list[bytes]:
            found = obstore.get_ranges(self.store, path, starts=starts, ends=stops, coalesce=0)
            blocks = [memoryview(block) for block in found]
            if [len(block) for block in blocks] != [stop - start for start, stop in ranges]:
                raise OSError("a range arrived short")
            return [bytes(block) for block in blocks]

        return self._found(path, self._try(path, work, None))

    def get_file(self, path: str, local: Path, size: int) -> None:
        """See `Objects.get_file`."""
        import obstore

        def work() -> bool:
            with open(local, "ab") as file:
                start = file.tell()
                if start >= size:
                    return True
                found = obstore.get(self.store, path, options={"range": {"offset": start}} if start else {})
                if found.meta["size"] != size:
                    actual = found.meta["size"]
                    raise VerificationError(f"{self.url}/{path} has {actual} bytes, its manifest lists {size}", AGAIN)
                left = size - start
                for block in found.stream(min_chunk_size=STREAM):
                    left -= len(block)
                    if left < 0:
                        raise VerificationError(f"{self.url}/{path} sends more than {size} bytes", AGAIN)
                    file.write(memoryview(block))
                if left:
                    raise OSError(f"{size - left} of {size} bytes arrived")
            return True

        # A body that was cut left its bytes in the file: the next attempt goes on there.
        self._found(path, self._try(path, work, None))

    def create(self, path: str, data: bytes) -> bool:
        """See `Objects.create`."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def work() -> bool:
            try:
                obstore.put(self.store, path, data, mode="create")
                return True
            except (AlreadyExistsError, PreconditionError):
                # A retried put whose first answer was lost meets itself: equal bytes are ours.
                return self.size(path) == len(data) and self.get(path, len(data)) == data

        return self._found(path, self._try(path, work, None))

    def replace(self, path: str, data: bytes) -> None:
        """See `Objects.replace`."""
        import obstore

        self._found(path, self._try(path, lambda: obstore.put(self.store, path, data), None))

    def put_file(self, local: Path, path: str) -> None:
        """See `Objects.put_file`."""
        import obstore

        self._found(path, self._try(path, lambda: obstore.put(self.store, path, local), None))

    def names(self, prefix: str) -> list[str]:
        """See `Objects.names`."""
        import obstore

        def work() -> list[str]:
            return sorted(entry["path"] for page in obstore.list(self.store, prefix=prefix) for entry in page)

        return self._try(prefix, work, []) or []

    def folders(self) -> list[str]:
        """See `Objects.folders`."""
        import obstore

        def work() -> list[str]:
            found = obstore.list_with_delimiter(self.store)["common_prefixes"]
            return sorted(name for name in found if not name.startswith("."))

        return self._try("", work, []) or []

    def size(self, path: str) -> int | None:
        """See `Objects.size`."""
        import obstore

        return self._try(path, lambda: int(obstore.head(self.store, path)["size"]), None)

    def delete(self, path: str) -> None:
        """See `Objects.delete`."""
        import obstore

        self._try(path, lambda: obstore.delete(self.store, path), None)

    def _found(self, path: str, result: T | None) -> T:
        if result is None:
            raise RemoteError(f"{self.url}/{path} is not there", "Check the bucket's name, and push the store again.")
        return result

    def _try(self, path: str, work: Callable[[], T], absent: T | None) -> T | None:
        """`work()`, `absent` if there is no such object; again after a while for what may be an accident."""
        from obstore.exceptions import NotSupportedError, PermissionDeniedError, UnauthenticatedError

        global _process
        _process = _process or os.getpid()
        if _process != os.getpid():
            what = f"{self.url} cannot be read in a process that was forked from one that read a remote"
            raise RemoteError(what, "Start workers by 'spawn' or 'forkserver'.")
        if path:
            check_relative(Path(self.url), path)
        where = f"{self.url}/{path}".rstrip("/")
        for attempt in range(self._attempts):
            try:
                return work()
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise RemoteError(f"{where}: there is no such bucket", BUCKET) from None
                return absent
            except CompalError:
                raise
            except (PermissionDeniedError, UnauthenticatedError) as error:
                raise RemoteError(f"{where} refuses access: {_line(error)}", LOGIN) from None
            except NotSupportedError as error:
                raise RemoteError(f"{where} cannot do this: {_line(error)}", "Use another remote.") from None
            except Exception as error:  # obstore.exceptions.BaseError, OSError
                last = _line(error)
                if "NoSuchBucket" in str(error):
                    raise RemoteError(f"{where}: there is no such bucket", BUCKET) from None
                if attempt + 1 < self._attempts:
                    time.sleep(min(LONGEST, BACKOFF * 2**attempt))
        raise RemoteError(f"{where} does not answer rightly: {last}", AGAIN)


def _profile() -> dict[str, Any]:
    """boto3's credentials (profiles, SSO) where the environment holds none and boto3 is installed."""
    if os.environ.get("AWS_ACCESS_KEY_ID") or not importlib.util.find_spec("boto3"):
        return {}
    import boto3

    session = boto3.Session()
    if session.get_credentials() is None:
        return {}
    from obstore.auth.boto3 import Boto3CredentialProvider

    return {"credential_provider": Boto3CredentialProvider(session)}


def _line(error: Exception) -> str:
    """The first line of a message, short: servers answer with pages of XML."""
    text = str(error).strip().split("\n", 1)[0]
    return text if len(text) <= 200 else text[:199] + "…"

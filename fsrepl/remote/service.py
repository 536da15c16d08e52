"""A region that is an S3 service, as the site sees it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from fsrepl.errors import BucketMissing, Failed, FsreplError, Unavailable
from fsrepl.model.version import Versioning
from fsrepl.remote.bucket import RemoteBucket
from fsrepl.remote.client import Client
from fsrepl.remote.elsewhere import Elsewhere
from fsrepl.remote.failures import ServiceAway
from fsrepl.settings import EndpointSettings

ANSWER_S = 20.0
"""How long a command waits for a service. On a small or busy machine botocore's start alone takes seconds."""

T = TypeVar("T")


class Service(Elsewhere):
    """One S3 service of a site's settings."""

    settings: EndpointSettings

    def __init__(self, settings: EndpointSettings) -> None:
        self.settings = settings
        self.client = Client(settings)

    @property
    def what(self) -> str:
        return f"the S3 service {self.url}"

    @property
    def advice(self) -> str:
        return "name the bucket that is replicated to it"

    def place_of(self, address: str) -> str:
        bucket = self.bucket(address)
        return f"{self.url}/{bucket.name}/{bucket.prefix}"

    def versioning(self, address: str) -> Versioning | None:
        return self.ask(lambda: versioning_there(self.bucket(address)))

    def bucket(self, address: str) -> RemoteBucket:
        """A bucket by its address, whether or not it exists."""
        return RemoteBucket(self.client, address)

    def buckets(self) -> list[str]:
        try:
            found = self.ask(lambda: self.client.call("list_buckets").get("Buckets", ()))
        except Failed:
            return []
        return sorted(f"{self.name}/{row['Name']}" for row in found)

    def own_buckets(self) -> list[str]:
        return []  # an account may have thousands that are none of this site's

    def ask(self, what: Callable[[], T], within_s: float = ANSWER_S) -> T:
        """The answer to a command's question. Raises ServiceAway where there is none in time; else as the question."""
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(what())
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=run, name=f"ask {self.name}", daemon=True).start()
        try:
            return answer.result(within_s)
        except TimeoutError:
            url = self.settings.url
            raise ServiceAway(f"region {self.name}: {url} gives no answer in {within_s:g} s; try again later") from None

    def trouble(self) -> str:
        try:
            self.buckets()
        except (FsreplError, OSError) as error:
            return str(error)
        return ""


def versioning_there(bucket: RemoteBucket) -> Versioning | None:
    """The state of a bucket's versioning; None where there is no such bucket. Raises Unavailable."""
    try:
        return bucket.versioning()
    except BucketMissing:
        return None
    except Failed as error:
        raise Unavailable(str(error)) from error

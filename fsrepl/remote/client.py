"""Requests to one S3 service, through botocore, which is imported only where a region is such a service.

A request is sent once: an answer that was lost may still have made a version, so that only a caller that has looked
sends it again. The time limits are those of a service that hangs; a slow transfer that moves is waited for. Small
objects and parts are put by puts.py, once botocore has put one to their bucket.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from fsrepl.errors import FsreplError, Unavailable, Usage
from fsrepl.remote import puts
from fsrepl.remote.failures import CREDENTIALS, ServiceAway, error_of, tls_trouble, words_of
from fsrepl.remote.puts import Body, Connections, Way
from fsrepl.settings import EndpointSettings

_CONNECT_S, _READ_S = 10, 60
_CHUNK = 1 << 20

Answer = dict[str, Any]


class Client:
    """The connections to one service, shared by threads. Made at the first request."""

    def __init__(self, settings: EndpointSettings) -> None:
        self.settings = settings
        self._guard = threading.Lock()
        self._made: Any = None
        self._credentials: Any = None
        self._connections: Connections | None = None
        """The connections on which objects and parts are put; None where botocore puts all by itself."""
        self._ways: dict[str, Way | None] = {}
        """By bucket, how that is done; None where it is left to botocore."""
        self._sent = threading.local()

    @property
    def region(self) -> str:
        return self.settings.name

    def call(self, operation: str, **params: Any) -> Answer:
        """The answer to one request.

        Raises ServiceAway (not reachable, busy, or its credentials, clock or quota are to be mended), BucketMissing,
        Absent, Failed (refused), Unavailable; Usage where botocore is missing.
        """
        client = self._client()
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            if puts.is_put(operation, params):
                return self._put(client, operation, params)
            answer: Answer = getattr(client, operation)(**params)
            return answer
        except ClientError as error:
            said, meta = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
            code, status = str(said.get("Code", "")), int(meta.get("HTTPStatusCode", 0))
            if code in CREDENTIALS or status == 401:
                self._forget(client)
            raise error_of(self.region, operation, code, str(said.get("Message") or ""), status) from error
        except BotoCoreError as error:
            raise self._unreachable(error) from error
        except OSError as error:
            raise ServiceAway(f"region {self.region}: {self.settings.url} cannot be reached: {error}") from error

    def _forget(self, client: Any) -> None:
        """Have the credentials read again, which botocore reads once: a person may have corrected them."""
        with self._guard:
            if self._made is client:
                self._made = None

    def _put(self, client: Any, operation: str, params: Mapping[str, Any]) -> Answer:
        """Put an object or a part; as botocore does the first time, and where a bucket has moved."""
        bucket = params["Bucket"]
        if (way := self._ways.get(bucket)) is not None:
            assert self._connections is not None
            answer = self._connections.put(way, self._credentials, operation, params)
            if answer is not None:
                return answer
            self._ways.pop(bucket, None)
        made: Answer = getattr(client, operation)(**params)
        if bucket not in self._ways and self._connections is not None:
            sent = self._sent.request
            url = sent.url.partition("?")[0] if operation == "upload_part" else sent.url
            self._ways[bucket] = puts.way_of(params["Key"], url, sent.headers)
        return made

    def content(self, **params: Any) -> Iterator[bytes]:
        """The content of an object or a version. Raises as `call` does."""
        from botocore.exceptions import BotoCoreError

        body = self.call("get_object", **params)["Body"]
        try:
            yield from body.iter_chunks(_CHUNK)
        except (BotoCoreError, OSError) as error:
            raise self._unreachable(error) from error
        finally:
            body.close()

    def _unreachable(self, error: Exception) -> FsreplError:
        """The error for a request without an answer."""
        kind, settings = type(error).__name__, self.settings
        words = words_of(kind, str(error))
        if kind in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ConfigParseError"):
            where = {"env": "the environment", "profile": f"profile {settings.credentials.name}"}
            place = where.get(settings.credentials.source, settings.credentials.name)
            return ServiceAway(f"region {self.region}: there are no credentials in {place} ({words})")
        if kind.startswith(("CredentialRetrieval", "TokenRetrieval", "UnauthorizedSSO", "SSOTokenLoad")):
            return ServiceAway(f"region {self.region}: its credentials cannot be renewed ({words})")
        if kind == "SSLError":
            return ServiceAway(f"region {self.region}: {settings.url}: {tls_trouble(words)}")
        if kind in ("ParamValidationError", "UnknownParameterError"):
            return Unavailable(f"region {self.region}: {words}")
        cause = str(getattr(error, "kwargs", {}).get("error", "")).rpartition(": ")[2].rstrip("')")
        denied = "; under systemd, IPAddressAllow= in the unit permits it" if f"[Errno {errno.EPERM}]" in cause else ""
        words += f": {cause}" if cause else ""
        return ServiceAway(f"region {self.region}: {settings.url} cannot be reached ({words}){denied}")

    def _client(self) -> Any:
        with self._guard:
            if self._made is None:
                self._made = self._make()
            return self._made

    def _make(self) -> Any:
        check_installed(self.region)
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        settings = self.settings
        session = botocore.session.Session()
        session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
        if settings.credentials.source == "profile":
            session.set_config_variable("profile", settings.credentials.name)
        elif settings.credentials.source == "file":
            _check_private(self.region, settings.credentials.name)
            session.set_config_variable("credentials_file", settings.credentials.name)
            session.get_component("credential_provider").remove("env")  # the file was named, and nothing else
        config = Config(
            connect_timeout=_CONNECT_S,
            read_timeout=_READ_S,
            max_pool_connections=settings.puts + 8,
            retries={"total_max_attempts": 1, "mode": "standard"},
            request_checksum_calculation="when_required",  # our own are sent with each object
            response_checksum_validation="when_required",
            s3=None if settings.addressing == "auto" else {"addressing_style": settings.addressing},
            user_agent_extra="fsrepl",
        )
        try:
            client = session.create_client(
                "s3", region_name=settings.signing_region, endpoint_url=settings.url, config=config
            )
            self._credentials = session.get_credentials()
        except BotoCoreError as error:
            raise self._unreachable(error) from error
        session = getattr(getattr(client, "_endpoint", None), "http_session", None)
        self._connections = puts.connections(session, _CONNECT_S, _READ_S)
        client.meta.events.register("before-send.s3.PutObject", self._note_request)
        client.meta.events.register("before-send.s3.UploadPart", self._note_request)
        client.meta.events.register("before-send.s3", _note_sent)
        return client

    def _note_request(self, request: Any, **_: object) -> None:
        """Keep the request that this thread has just made ready."""
        self._sent.request = request


def _note_sent(request: Any, **_: object) -> None:
    if isinstance(request.body, Body):
        request.body.is_sent = True


@functools.cache
def _loader(data_path: str | None) -> Any:
    """botocore's descriptions of S3 and of its endpoints, read once a process: they are five sixths of the time in
    which a client is made, and the settings of a site may name several services."""
    from botocore.loaders import create_loader

    return create_loader(data_path)


def check_installed(region: str) -> None:
    """Raises Usage where botocore is missing."""
    try:
        import botocore.session  # noqa: F401
    except ImportError as error:
        raise Usage(
            f"region {region} is an S3 service, which needs the Python package botocore ({error}); "
            "pip install 'fsrepl[s3]' brings it"
        ) from error


def _check_private(region: str, path: str) -> None:
    """Raises ServiceAway where a file of credentials is missing, or others may read it."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise ServiceAway(f"region {region}: its credentials in {path} cannot be read: {error.strerror}") from error
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ServiceAway(f"region {region}: others may read its credentials: `chmod 600 {path}`")

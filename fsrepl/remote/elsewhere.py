"""A region that is not on this machine, as the site sees it: what S3 services and regions over ssh have in common."""

from __future__ import annotations

import abc

from fsrepl.model.version import Versioning
from fsrepl.settings import EndpointSettings, HostSettings


class Elsewhere(abc.ABC):
    """See the module."""

    settings: EndpointSettings | HostSettings

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def url(self) -> str:
        return self.settings.url

    @property
    @abc.abstractmethod
    def what(self) -> str:
        """The kind of region, for messages."""

    @property
    @abc.abstractmethod
    def advice(self) -> str:
        """The alternative to a command on a bucket of the region, for messages."""

    @abc.abstractmethod
    def place_of(self, address: str) -> str:
        """Where a bucket is, for people."""

    @abc.abstractmethod
    def versioning(self, address: str) -> Versioning | None:
        """The state of a bucket's versioning; None where there is no such bucket. Raises Unavailable."""

    @abc.abstractmethod
    def buckets(self) -> list[str]:
        """The addresses of its buckets; none where listing them is not permitted. Raises Unavailable."""

    @abc.abstractmethod
    def own_buckets(self) -> list[str]:
        """The addresses of its buckets that are shown although no rule names them. Raises Unavailable."""

    @abc.abstractmethod
    def trouble(self) -> str:
        """Why the region cannot be used now; empty where it can be."""

"""What is done for each address of the console: a function from a visit to a response, run in a thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.responses import Response

from fsrepl.console.handlers import buckets, deliveries, objects, overview
from fsrepl.console.handlers.visit import Visit

Handler = Callable[[Visit], Response]

PAGES: Mapping[str, Handler] = {
    "/": overview.overview,
    "/bucket": buckets.bucket,
    "/object": objects.object_page,
    "/download": objects.download,
    "/failures": deliveries.failures,
    "/deliveries": deliveries.deliveries,
    "/acknowledge": deliveries.acknowledge_page,
    "/undelete": deliveries.undelete_page,
}
"""Addresses that show something, and change nothing."""

ACTIONS: Mapping[str, Handler] = {
    "/bucket/create": buckets.create,
    "/bucket/versioning": buckets.set_versioning,
    "/object/restore": objects.restore,
    "/object/delete": objects.delete,
    "/tag/set": objects.set_tag,
    "/tag/remove": objects.remove_tag,
    "/retry": deliveries.retry,
    "/acknowledge": deliveries.acknowledge,
    "/undelete": deliveries.undelete,
}
"""Addresses of forms, which change something."""

LIVE: Mapping[str, Callable[[Visit], str]] = {"/live": overview.live}
"""Parts of pages that are sent again when they change."""

"""The handler of each address of the console: a function from a visit to a response, run in a thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.responses import Response

from fsrepl.console.handlers import buckets, deliveries, doctor, jobs, lifecycle, objects, overview, replication, wizard
from fsrepl.console.handlers.visit import Visit

Handler = Callable[[Visit], Response]

PAGES: Mapping[str, Handler] = {
    "/": overview.overview,
    "/bucket": buckets.bucket,
    "/adopt": buckets.adopt_page,
    "/object": objects.object_page,
    "/download": objects.download,
    "/replication": replication.replication,
    "/replicate": wizard.wizard,
    "/replicate/existing": wizard.existing,
    "/jobs": jobs.jobs,
    "/job": jobs.verification,
    "/lifecycle": lifecycle.lifecycle,
    "/doctor": doctor.doctor,
    "/failures": deliveries.failures,
    "/deliveries": deliveries.deliveries,
    "/acknowledge": deliveries.acknowledge_page,
    "/undelete": deliveries.undelete_page,
}
"""Addresses that show something, and change nothing."""

ACTIONS: Mapping[str, Handler] = {
    "/bucket/create": buckets.create,
    "/adopt": buckets.adopt,
    "/bucket/versioning": buckets.set_versioning,
    "/object/restore": objects.restore,
    "/object/delete": objects.delete,
    "/tag/set": objects.set_tag,
    "/tag/remove": objects.remove_tag,
    "/replication/put": replication.put,
    "/replication/disable": replication.disable,
    "/replication/enable": replication.enable,
    "/replication/remove": replication.remove,
    "/replicate/save": wizard.save,
    "/backfill": wizard.backfill,
    "/job/cancel": jobs.cancel,
    "/scrub/run": jobs.run_scrub,
    "/scrub/pause": jobs.pause_scrub,
    "/scrub/resume": jobs.resume_scrub,
    "/verify": jobs.verify,
    "/verify/stop": jobs.stop,
    "/lifecycle": lifecycle.change,
    "/lifecycle/remove": lifecycle.remove,
    "/lifecycle/run": lifecycle.run,
    "/retry": deliveries.retry,
    "/acknowledge": deliveries.acknowledge,
    "/undelete": deliveries.undelete,
}
"""Addresses of forms, which change something."""

LIVE: Mapping[str, tuple[str, Callable[[Visit], str]]] = {
    "/live": ("/", overview.live),
    "/jobs/live": ("/jobs", jobs.live),
    "/doctor/live": ("/doctor", doctor.live),
}
"""Parts of pages that are sent again when they change: the address of each, of its page, and what makes it."""

"""The wizard: each step asks one question; only the last one, a form, changes something."""

from __future__ import annotations

import itertools

from starlette.responses import Response

from fsrepl.commands import replication, trees
from fsrepl.commands.documents import buckets as bucket_documents
from fsrepl.commands.documents import roles as role_documents
from fsrepl.console.handlers.visit import Visit
from fsrepl.console.pages import wizard as pages
from fsrepl.console.pages.rendering import Frame, url
from fsrepl.console.pages.wizard import Answers
from fsrepl.daemon import requests
from fsrepl.errors import FsreplError, Refused
from fsrepl.model.address import Address, region_of
from fsrepl.s3 import arn, roles
from fsrepl.storage.site import Site


def wizard(visit: Visit) -> Response:
    """The step that comes next, by the answers in the address."""
    answers, trouble = _answers(visit)
    site = visit.gateway.site()
    if answers.source:
        site.bucket(answers.source)
    frame = visit.frame()
    match answers.step:
        case 0:
            return visit.html(pages.sources(frame, bucket_documents.buckets(site)))
        case 1:
            source = Address.parse_bucket(answers.source)
            offered = {
                region: list(some)
                for region, some in itertools.groupby(sorted(replication.candidates(site, source)), region_of)
            }
            return visit.html(pages.destination(frame, answers, offered, replication.unsuitable(site, source)))
        case 2:
            return visit.html(pages.source(frame, answers, trouble))
        case 3:
            return visit.html(pages.storage_class(frame, answers))
        case 4:
            named = roles.generated_name(*(Address.parse_bucket(a).name for a in (answers.source, answers.destination)))
            return visit.html(pages.role(frame, answers, _roles(site), named))
        case _:
            return visit.html(_review(visit, frame, site, answers))


def _answers(visit: Visit) -> tuple[Answers, str]:
    """The answers in the address, and what is wrong with the last one.

    While prefixes are added and removed the scope stays unanswered; `Next` answers it.
    """
    prefixes = tuple(zip(visit.all("prefix"), visit.all("class"), strict=False))
    scope, do, new, trouble = visit.get("scope"), visit.get("do"), visit.get("new_prefix"), ""
    if scope == pages.WHOLE:
        prefixes = ()
    elif do.startswith("remove:"):
        prefixes = tuple(each for each in prefixes if each[0] != do.removeprefix("remove:"))
    elif new:
        if other := pages.overlapping(prefixes, new):
            trouble = f"“{new}” overlaps “{other}”: each key belongs to one prefix."
        else:
            prefixes = (*prefixes, (new, visit.get("new_class")))
    elif do == "add" or (scope and not prefixes):
        trouble = "Type a prefix first; a folder ends in /."
    answers = Answers(
        source=visit.get("source"), region=visit.get("region"), destination=visit.get("destination"),
        scope="" if trouble else scope, prefixes=prefixes, storage_class=visit.parameters.get("storage_class"),
        role=visit.parameters.get("role"), existing=visit.get("existing"),
    )  # fmt: skip
    return answers, trouble


def _roles(site: Site) -> list[str]:
    """The existing roles with a name that a rule can name."""
    found = []
    for name in role_documents.names(site.settings):
        try:
            arn.check_role_name(name)
        except Refused:
            continue
        found.append(name)
    return found


def _review(visit: Visit, frame: Frame, site: Site, answers: Answers) -> str:
    has_rules = replication.has_configuration(site, answers.source)
    answer, trouble = None, ""
    if has_rules and not answers.existing:
        trouble = "choose what becomes of the rules that it has"
    else:
        try:
            answer = visit.gateway.ask(answers.request(dry_run=True))
        except FsreplError as error:
            trouble = str(error)
    offers_trees = bool(trees.plain(site, (answers.source, answers.destination)))
    return pages.review(frame, answers, answer, trouble=trouble, has_rules=has_rules, offers_trees=offers_trees)


def save(visit: Visit) -> Response:
    """Write the configuration, all of it or nothing."""
    answers, _ = _answers(visit)
    request = answers.request(dry_run=False)
    answer = visit.perform(request)
    if unmatched := answer.get("Unmatched"):
        visit.session.tell(f"No object begins with {' or '.join(unmatched)} yet: the rule waits for such objects.")
    if visit.given("trees"):
        for bucket in trees.plain(visit.gateway.site(), (answers.source, answers.destination)):
            visit.perform(requests.SetTrees(Address.parse_bucket(bucket), True))
    return visit.done(
        f"{answers.source} is replicated to {answers.destination} from now on.",
        url("/replicate/existing", source=answers.source),
    )


def existing(visit: Visit) -> Response:
    """The configuration as written and read back, and the question about objects from before it."""
    source = visit.get("source")
    site = visit.gateway.site_with(source)
    document = replication.configuration(site, source).document
    look = visit.watch.newest(wait_s=0)
    buckets = look.status["buckets"] if look is not None else ()
    objects = next((bucket["objects"] for bucket in buckets if bucket["bucket"] == source), None)
    return visit.html(pages.existing(visit.frame(), source, {"ReplicationConfiguration": document}, objects))


def backfill(visit: Visit) -> Response:
    """Replicate the objects of before: those without a status, or with the statuses that the form names."""
    source = Address.parse_bucket(visit.get("source"))
    statuses, rules = tuple(visit.form.get("status", ())), tuple(visit.form.get("rule", ()))
    job = visit.perform(requests.Backfill(source, statuses, rules))
    return visit.done(f"Backfill {job['JobId']} of {source} is accepted.", "/jobs")

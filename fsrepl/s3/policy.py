"""AWS's policy grammar and its evaluation. Pure."""

from __future__ import annotations

import enum
import fnmatch
import functools
import re

from fsrepl.model.rule import Role

# -- evaluation


class Verdict(enum.Enum):
    ALLOWED = "allowed"
    NOT_ALLOWED = "not allowed"
    DENIED = "denied"


def may(role: Role, action: str, resource: str) -> Verdict:
    """Whether a role's policy permits an action on one bucket or object, given by its ARN."""
    verdict = Verdict.NOT_ALLOWED
    for statement in role.statements:
        if is_named(statement.actions, action) and any(p.fullmatch(resource) for p in _patterns(statement.resources)):
            if not statement.allow:
                return Verdict.DENIED
            verdict = Verdict.ALLOWED
    return verdict


@functools.lru_cache(maxsize=1024)
def is_named(actions: tuple[str, ...], action: str) -> bool:
    """Whether an action matches one of a statement's, in which * and ? are wildcards and case is ignored."""
    return any(_glob(pattern.lower()).fullmatch(action.lower()) for pattern in actions)


@functools.lru_cache(maxsize=1024)
def _patterns(resources: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(map(_arn_pattern, resources))


def _arn_pattern(resource: str) -> re.Pattern[str]:
    """A pattern for a Resource. Wildcards match within one part of an ARN; the last part is all the rest.

    S3's own ARNs name no region: such a Resource means the bucket of that name in each region.
    """
    if resource == "*":
        return _glob(resource)
    arn, partition, service, region, account, last = resource.split(":", 5)
    head = re.escape(f"{arn}:{partition}:{service}:{region or '*'}:{account}:")
    return re.compile(head.replace(r"\*", "[^:]*").replace(r"\?", "[^:]") + _glob(last).pattern)


def _glob(pattern: str) -> re.Pattern[str]:
    """A pattern for IAM's * and ?: fnmatch's, which avoids exponential backtracking, but without brackets."""
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))

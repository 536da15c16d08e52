"""Replication and versioning settings in S3's JSON: parsed, refused with S3's codes, and written. Pure.

A configuration is V1 (rules with a Prefix field, one destination, markers always copied) or V2 (rules with a Filter,
priorities, and a setting for markers). s3/schema.py has its form. `_faults` checks what types cannot express in one
rule, `_faults_together` across all rules, and `parse_replication` for the named buckets. Source: s3-semantics, section
1.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Protocol, cast

from fsrepl.errors import Refused
from fsrepl.model.address import Address
from fsrepl.model.rule import Replication, Rule
from fsrepl.model.version import EMPTY, STORAGE_CLASSES, Versioning
from fsrepl.s3 import faults
from fsrepl.s3.arn import bucket_arn, parse_bucket_arn, parse_role_arn, role_arn
from fsrepl.s3.conform import conform, quoted
from fsrepl.s3.faults import Fault, key_prefix
from fsrepl.s3.schema import (
    Destination,
    EnabledOrDisabled,
    Metrics,
    ReplicationConfiguration,
    ReplicationRule,
    ReplicationTime,
    Switch,
    Tag,
    VersioningConfiguration,
)

RULES_MAX = 1000
SIZE_MAX_BYTES = 2 << 20
PRIORITY_MAX = 2**31 - 1
THRESHOLD_MINUTES = 15


class Buckets(Protocol):
    """Facts about a site's buckets that are needed to accept a configuration."""

    def named(self, name: str) -> list[str]:
        """The addresses of all buckets with a name."""

    def versioning(self, address: str) -> Versioning | None:
        """The versioning of a bucket; None where the bucket does not exist."""

    def account(self, address: str) -> str:
        """The account that owns a bucket: arn.ACCOUNT, unless a site has several."""


# -- reading a configuration


def parse_replication(document: object, *, source: str, buckets: Buckets, size_bytes: int = 0) -> Replication:
    """A new configuration for a bucket, with all checks of `put`. size_bytes: the size of its text.

    The result's document is the one to save: missing ids are added, and destinations get their region. Raises Refused
    with the codes of s3-semantics, 1.4. Role and KMS keys are not checked here; a delivery checks them later.
    """
    if size_bytes > SIZE_MAX_BYTES:
        raise Refused(
            "InvalidRequest", f"a configuration may have {SIZE_MAX_BYTES:,} bytes, and this has {size_bytes:,}"
        )
    replication = read_replication(document, source=source, named=buckets.named)
    _require_versioning(
        source, buckets, "Versioning must be 'Enabled' on the bucket to apply a replication configuration"
    )
    for rule, written in zip(replication.rules, _configuration(replication.document)["Rules"], strict=True):
        to = rule.destination
        if buckets.versioning(to) is None:
            raise Refused(
                "InvalidRequest",
                f"rule {quoted(rule.id)}: Destination bucket must exist: there is no {to}; "
                f"`fsrepl bucket create {to} --versioning` makes it",
            )
        _require_versioning(to, buckets, f"rule {quoted(rule.id)}: Destination bucket must have versioning enabled")
        account = written["Destination"].get("Account", buckets.account(to))
        if account != buckets.account(to):
            raise Refused(
                "InvalidArgument",
                f"rule {quoted(rule.id)}: Account {quoted(account)} does not own {to}; {buckets.account(to)} does",
            )
    return replication


def _require_versioning(address: str, buckets: Buckets, message: str) -> None:
    state = buckets.versioning(address)
    if state is None:
        raise Refused("NoSuchBucket", f"there is no bucket {address}")
    if state is not Versioning.ENABLED:
        how = "suspended" if state is Versioning.SUSPENDED else "off"
        raise Refused(
            "InvalidRequest", f"{message}: that of {address} is {how}; `fsrepl versioning enable {address}` enables it"
        )


def read_replication(document: object, *, source: str, named: Callable[[str], list[str]]) -> Replication:
    """A saved configuration, checked for consistency. The state of the named buckets is checked when copying.

    named: returns the addresses of all buckets with a name. Raises Refused with the codes of s3-semantics, 1.4.
    """
    configuration = _configuration(document)
    written = configuration["Rules"]
    role = parse_role_arn(configuration["Role"])
    if not written:
        raise Refused("MalformedXML", "Rules is empty; a configuration has at least one, and `rm` removes it")
    if len(written) > RULES_MAX:
        raise Refused("MalformedXML", f"a configuration may have {RULES_MAX:,} rules, and this has {len(written):,}")
    destinations = []
    for i, rule in enumerate(written):
        where = faults.named(rule.get("ID"), i)
        faults.refuse_first(_faults(rule), f"{where}: ")
        address = parse_bucket_arn(rule["Destination"]["Bucket"], named, of=where)
        if address == source:
            raise Refused(
                "InvalidRequest", f"{where}: Destination bucket cannot be the same as the source bucket, {source}"
            )
        destinations.append(address)
    faults.refuse_first(_faults_together(written, destinations))
    ids = _ids(written, source, destinations)
    configuration["Rules"] = [_normal(*each) for each in zip(written, ids, destinations, strict=True)]
    rules = [_rule(*each) for each in zip(configuration["Rules"], destinations, strict=True)]
    return Replication(role, tuple(rules), configuration)


def _configuration(document: object) -> ReplicationConfiguration:
    """A copy of a document in the right form, without the wrapper that `aws s3api` prints."""
    inner = faults.unwrapped(document, "ReplicationConfiguration")
    return copy.deepcopy(conform(inner, ReplicationConfiguration, "MalformedXML"))


def _rule(written: ReplicationRule, destination: str) -> Rule:
    to = written["Destination"]
    prefix, tags = selection(written)
    v2 = "Filter" in written
    return Rule(
        id=written["ID"],
        enabled=written["Status"] == "Enabled",
        prefix=key_prefix(prefix),
        destination=destination,
        tags={tag["Key"]: tag["Value"] for tag in tags},
        priority=written.get("Priority", 0),
        v2=v2,
        delete_markers=not v2 or _on(written.get("DeleteMarkerReplication")),
        replica_modifications=_on(written.get("SourceSelectionCriteria", {}).get("ReplicaModifications")),
        storage_class=to.get("StorageClass", ""),
        owner=to["AccessControlTranslation"]["Owner"] if "AccessControlTranslation" in to else "",
        metrics=_on(to.get("Metrics")),
        replication_time=_on(to.get("ReplicationTime")),
    )


def _on(setting: Switch | Metrics | ReplicationTime | None) -> bool:
    return setting is not None and setting["Status"] == "Enabled"


def selection(rule: ReplicationRule) -> tuple[str, list[Tag]]:
    """The prefix and tags of a rule, in whichever form the rule has them."""
    found = rule.get("Filter", {})
    both = found.get("And", {})
    prefix = rule.get("Prefix") or found.get("Prefix") or both.get("Prefix") or ""
    return prefix, [found["Tag"]] if "Tag" in found else both.get("Tags", [])


def _normal(rule: ReplicationRule, rule_id: str, destination: str) -> ReplicationRule:
    """A rule as saved: with its id, the region of its destination, and its fields in S3's order."""
    rule["ID"] = rule_id
    rule["Destination"]["Bucket"] = bucket_arn(destination)
    return _in_order(rule)


def _in_order(rule: ReplicationRule) -> ReplicationRule:
    found = cast(dict[str, object], rule)
    return cast(ReplicationRule, {name: found[name] for name in ReplicationRule.__annotations__ if name in found})


def _ids(rules: list[ReplicationRule], source: str, destinations: Iterable[str]) -> list[str]:
    """The rules' ids. S3 generates missing ids; those generated here name both buckets: src-to-dst, src-to-dst-2."""
    taken = {rule.get("ID", "") for rule in rules}
    fresh: dict[str, Iterator[str]] = {}
    ids = []
    for rule, destination in zip(rules, destinations, strict=True):
        pair = f"{Address.parse_bucket(source).name}-to-{Address.parse_bucket(destination).name}"
        names = fresh.setdefault(pair, _numbered(pair))
        ids.append(rule.get("ID") or next(name for name in names if name not in taken))
    return ids


def _numbered(name: str) -> Iterator[str]:
    """The name, then name-2, name-3, and so on."""
    yield name
    for number in itertools.count(2):
        yield f"{name}-{number}"


# -- checks of a configuration in the right form


def _faults(rule: ReplicationRule) -> Iterator[Fault]:
    """Faults within one rule. Source: s3-semantics, 1.4."""
    yield from _faults_of_selection(rule)
    yield from _faults_of_version(rule)
    yield from _faults_of_destination(rule["Destination"])
    yield from _faults_of_kms(rule)
    if rule.get("SourceSelectionCriteria") == {}:
        yield "InvalidRequest", "SourceSelectionCriteria cannot be empty; leave it out"


def _faults_of_selection(rule: ReplicationRule) -> Iterator[Fault]:
    """Faults in a rule's filter and id."""
    if ("Prefix" in rule) == ("Filter" in rule):
        both = "both Prefix and Filter" if "Filter" in rule else "neither Prefix nor Filter"
        yield "MalformedXML", f"it has {both}; Filter alone is the present form, an empty one means the whole bucket"
    found = rule.get("Filter", {})
    if len(found) > 1:
        yield "MalformedXML", f"Filter has {' and '.join(found)}; several predicates belong in Filter.And"
    both_of = found.get("And", {})
    if "And" in found and ("Prefix" in both_of) + len(both_of.get("Tags", [])) < 2:
        yield "MalformedXML", "Filter.And needs two predicates; a single one belongs in Filter itself"
    prefix, tags = selection(rule)
    yield from faults.of_tags([tag["Key"] for tag in tags])
    yield from faults.of_prefix(prefix)
    yield from faults.of_id(rule.get("ID", ""))


def _faults_of_version(rule: ReplicationRule) -> Iterator[Fault]:
    """Faults against V1's limits and V2's requirements. Source: s3-semantics, 1.2."""
    schema = "for this version of Cross Region Replication configuration schema"
    if "Filter" not in rule:
        present = {*rule, *rule.get("SourceSelectionCriteria", ()), *rule["Destination"]}
        for name in ("Priority", "DeleteMarkerReplication", "ReplicaModifications", "ReplicationTime"):
            if name in present:
                yield "InvalidRequest", f"{name} cannot be used {schema}; it needs a Filter instead of Prefix"
        return
    if "Priority" not in rule:
        yield "InvalidRequest", f"Priority must be specified {schema}"
    if not 0 <= rule["Priority"] <= PRIORITY_MAX:
        yield "InvalidRequest", f"Priority must be between 0 and {PRIORITY_MAX}, not {rule['Priority']}"
    if "DeleteMarkerReplication" not in rule:
        yield (
            "InvalidRequest",
            f'DeleteMarkerReplication must be specified {schema}: {{"Status": "Enabled"}} or "Disabled"',
        )
    if _on(rule["DeleteMarkerReplication"]) and selection(rule)[1]:
        yield (
            "InvalidRequest",
            "Delete marker replication is not supported if any Tag filter is specified; "
            "set DeleteMarkerReplication to Disabled",
        )


def _faults_of_destination(to: Destination) -> Iterator[Fault]:
    if to.get("StorageClass", STORAGE_CLASSES[0]) not in STORAGE_CLASSES:
        known = ", ".join(STORAGE_CLASSES)
        yield "MalformedXML", f"Destination.StorageClass {quoted(to['StorageClass'])} is none of {known}"
    if "AccessControlTranslation" in to and "Account" not in to:
        yield "InvalidRequest", "Account must be specified if the Owner in AccessControlTranslation has a value"
    if to.get("Account") == "":
        yield "InvalidArgument", "Destination.Account is empty"
    metrics, timed = to.get("Metrics"), to.get("ReplicationTime")
    for given in (metrics and metrics.get("EventThreshold"), timed and timed["Time"]):
        if given and given["Minutes"] != THRESHOLD_MINUTES:
            yield "InvalidArgument", f"Minutes must be {THRESHOLD_MINUTES}, not {given['Minutes']}"
    if not timed:
        return
    if not metrics or metrics["Status"] != timed["Status"]:
        yield (
            "InvalidRequest",
            "Destination must contain both ReplicationTime and Metrics or neither, and with the same Status",
        )
    elif _on(timed) and "EventThreshold" not in metrics:
        yield "InvalidArgument", 'ReplicationMetrics must contain an event threshold: "EventThreshold": {"Minutes": 15}'


def _faults_of_kms(rule: ReplicationRule) -> Iterator[Fault]:
    """Faults of KMS settings. Files are not encrypted with KMS keys: the settings are checked as in S3, then
    refused."""
    selection = rule.get("SourceSelectionCriteria", {}).get("SseKmsEncryptedObjects")
    key = rule["Destination"].get("EncryptionConfiguration", {}).get("ReplicaKmsKeyID", "")
    if _on(selection) and not key:
        yield "InvalidRequest", "ReplicaKmsKeyID must be specified if SseKmsEncryptedObjects tag is present"
    if key and not selection:
        yield "InvalidRequest", "SseKmsEncryptedObjects must be specified if ReplicaKmsKeyID is present"
    if _on(selection):
        yield (
            "InvalidRequest",
            "fsrepl has no KMS; set SseKmsEncryptedObjects to Disabled, or leave it out with the key",
        )


def _faults_together(rules: list[ReplicationRule], destinations: Collection[str]) -> Iterator[Fault]:
    """Faults across rules that are valid one by one. Disabled rules count. Source: s3-semantics, 1.2 and 1.4."""
    yield from faults.of_ids(rule.get("ID") for rule in rules)
    filtered = sum("Filter" in rule for rule in rules)
    if 0 < filtered < len(rules):
        yield "InvalidRequest", "some rules have a Prefix of their own and others a Filter; give all of them a Filter"
    if filtered:
        if (priority := faults.repeated(rule["Priority"] for rule in rules)) is not None:
            yield "InvalidRequest", f"Found duplicate priority {priority}; each rule needs its own"
        return
    if len(set(destinations)) > 1:
        yield (
            "InvalidRequest",
            "Number of distinct destination bucket ARNs cannot exceed 1 where rules have a Prefix; "
            f"use a Filter to send to {' and '.join(sorted(set(destinations)))}",
        )
    prefixes = sorted((key_prefix(rule["Prefix"]), rule["Prefix"]) for rule in rules)
    for (shorter, one), (longer, other) in itertools.pairwise(prefixes):
        if longer.startswith(shorter):
            yield (
                "InvalidRequest",
                f"Found overlapping prefixes {quoted(one)} and {quoted(other)}; only a Filter may overlap",
            )


def effective_content(rule: Rule) -> str:
    """The fields that decide whether a rule chooses a version. The rule is in effect since these last changed."""
    prefix = rule.prefix.decode("utf-8", "surrogateescape")
    return json.dumps([rule.enabled, rule.destination, prefix, sorted(rule.tags.items())])


# -- writing a configuration; `parse_replication` checks the result and adds the ids


def enable_document(
    destination: str,
    *,
    role: str,
    prefixes: Collection[str] = (),
    storage_class: str = "",
    storage_classes: Mapping[str, str] = EMPTY,
    rule_id: str = "",
    delete_markers: bool = True,
) -> ReplicationConfiguration:
    """The document of `fsrepl replication enable`: the console's V1, one rule per prefix, or one for the whole bucket.

    storage_classes: classes for single prefixes. Without delete_markers the document is V2, since V1 has no such
    setting. role is a name. Several rules are called rule_id, rule_id-2 and so on. Source: s3-semantics, section 7, S9
    to S17.
    """
    rules: list[ReplicationRule] = []
    for prefix, name in zip(prefixes or ("",), _numbered(rule_id), strict=False):
        to: Destination = {"Bucket": bucket_arn(destination)}
        if its_class := storage_classes.get(prefix, storage_class):
            to["StorageClass"] = its_class
        rule: ReplicationRule = {"Prefix": prefix, "Status": "Enabled", "Destination": to}
        if rule_id:
            rule["ID"] = name
        if not delete_markers:
            rule = _as_v2(rule, priority=len(rules) + 1, markers="Disabled")
        rules.append(_in_order(rule))
    return {"Role": role_arn(role), "Rules": rules}


def add_rules(document: object, rules: Iterable[ReplicationRule]) -> ReplicationConfiguration:
    """A saved configuration with more rules. V1 stays V1 while there is one destination; otherwise all rules become V2.

    New V2 rules get the next free priorities, so they win; existing V2 rules keep their priorities.
    """
    configuration = _configuration(document)
    old, new = configuration["Rules"], copy.deepcopy(list(rules))
    every = [*old, *new]
    if any("Filter" in rule for rule in every) or len({rule["Destination"]["Bucket"] for rule in every}) > 1:
        old = [rule if "Filter" in rule else _as_v2(rule, priority) for priority, rule in enumerate(old, 1)]
        highest = max((rule["Priority"] for rule in old), default=0)
        new = [_as_v2(rule, priority) for priority, rule in enumerate(new, highest + 1)]
    return {"Role": configuration["Role"], "Rules": [*old, *new]}


def _as_v2(rule: ReplicationRule, priority: int, markers: EnabledOrDisabled = "Enabled") -> ReplicationRule:
    """A rule in V2's form; a V2 rule is unchanged. V1 always copies markers, so the converted rule has them Enabled."""
    v2 = rule.copy()
    prefix = v2.pop("Prefix", "")
    v2.setdefault("Filter", {"Prefix": prefix})
    v2.setdefault("DeleteMarkerReplication", {"Status": markers})
    v2["Priority"] = priority
    return _in_order(v2)


def set_status(document: object, status: EnabledOrDisabled) -> ReplicationConfiguration:
    """A configuration with all rules enabled, or all disabled. Source: s3-semantics, 1.5."""
    configuration = _configuration(document)
    for rule in configuration["Rules"]:
        rule["Status"] = status
    return configuration


def render_aws(document: object) -> ReplicationConfiguration:
    """A configuration as S3 would accept it: its bucket ARNs name no region."""
    configuration = _configuration(document)
    for rule in configuration["Rules"]:
        to = rule["Destination"]
        address = parse_bucket_arn(to["Bucket"], lambda name: [f"any/{name}"])  # any region, since the result omits it
        to["Bucket"] = bucket_arn(address, aws=True)
    return configuration


# -- versioning


def parse_versioning(document: object) -> Versioning:
    """The versioning in a document, with or without its wrapper; an empty document means never on.

    Raises Refused(MalformedXML).
    """
    found = conform(faults.unwrapped(document, "VersioningConfiguration"), VersioningConfiguration, "MalformedXML")
    return Versioning(found.get("Status", ""))


def versioning_document(versioning: Versioning) -> VersioningConfiguration:
    if versioning is Versioning.OFF:
        return {}
    return {"Status": "Enabled" if versioning is Versioning.ENABLED else "Suspended"}

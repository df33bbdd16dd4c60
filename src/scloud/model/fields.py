"""Constrained field types: the rules that names, addresses and sizes obey, each written once."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from scloud.model.ids import is_id

MAX_VNI = 2**24 - 1
NAME_RULE = "1-63 of a-z, 0-9 and '-', beginning with a letter and not ending with '-'"
PATTERN_RULES: dict[str, str] = {}
"""What a pattern demands, in words that follow "must be": people are told these, never the pattern."""


def worded(pattern: str, rule: str) -> str:
    """The pattern, with its rule noted."""
    PATTERN_RULES[pattern] = rule
    return pattern


REF_PATTERN = worded(r"^[a-z][a-z0-9-]*$", "an id or a name: a-z, 0-9 and '-', beginning with a letter")
ID_CHARACTERS = worded(r"^[a-z0-9-]+$", "of a-z, 0-9 and '-' only")


def _not_an_id(value: str) -> str:
    if is_id(value):
        raise ValueError("must not look like an id")
    return value


def _ipv4(value: str) -> str:
    try:
        address = ipaddress.IPv4Address(value)
    except ValueError as error:
        raise ValueError("must be an IPv4 address such as 10.0.0.5") from error
    return str(address)


def _cidr(value: str) -> str:
    try:
        network = ipaddress.IPv4Network(value, strict=True)
    except ValueError as error:
        raise ValueError("must be an IPv4 network such as 10.0.0.0/24, with no host bits set") from error
    return str(network)


def _subnet_cidr(value: str) -> str:
    network = ipaddress.IPv4Network(_cidr(value))
    if not 8 <= network.prefixlen <= 29:
        raise ValueError("must be between a /8 and a /29")
    reserved = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")
    for text in reserved:
        if network.overlaps(ipaddress.IPv4Network(text)):
            raise ValueError(f"must not overlap {text}")
    return str(network)


Name = Annotated[
    str,
    StringConstraints(pattern=worded(r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$", NAME_RULE), max_length=63),
    AfterValidator(_not_an_id),
    Field(description=NAME_RULE, examples=["web-1"]),
]
Ref = Annotated[
    str,
    StringConstraints(pattern=REF_PATTERN, min_length=1, max_length=63),
    Field(description="a resource's id or name", examples=["default"]),
]
_OCTET = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"^{_OCTET}(\.{_OCTET}){{3}}$"
_CIDR = rf"^{_OCTET}(\.{_OCTET}){{3}}/(3[0-2]|[12]?[0-9])$"
# Patterns are for those who read the published schema; the validators know more, and say it better.
Ipv4 = Annotated[
    str,
    StringConstraints(max_length=15),
    AfterValidator(_ipv4),
    Field(examples=["10.0.0.5"], json_schema_extra={"pattern": _IPV4}),
]
Cidr = Annotated[
    str,
    StringConstraints(max_length=18),
    AfterValidator(_cidr),
    Field(examples=["0.0.0.0/0"], json_schema_extra={"pattern": _CIDR}),
]
SubnetCidr = Annotated[
    str,
    StringConstraints(max_length=18),
    AfterValidator(_subnet_cidr),
    Field(examples=["10.0.0.0/24"], json_schema_extra={"pattern": _CIDR}),
]
Mac = Annotated[
    str, StringConstraints(pattern=worded(r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$", "a MAC such as 06:00:00:00:00:01"))
]
# Strict: true is not 1, and "1" neither.
Vni = Annotated[int, Field(strict=True, ge=1, le=MAX_VNI, description="VXLAN network identifier, 24 bits")]
Cpus = Annotated[int, Field(strict=True, ge=1, le=256, description="virtual CPUs")]
MemoryMib = Annotated[int, Field(strict=True, ge=64, le=16 * 1024 * 1024, description="memory in MiB")]
DiskMib = Annotated[int, Field(strict=True, ge=1, le=64 * 1024 * 1024, description="size in MiB")]
L4Port = Annotated[int, Field(strict=True, ge=0, le=65535)]
Timestamp = Annotated[float, Field(description="seconds since 1970-01-01 UTC")]

"""Short digests of desired objects, by which manager and agent find out what differs without sending it."""

from __future__ import annotations

import hashlib

from scloud.model.base import Value


def digest_of(item: Value) -> str:
    """16 hex characters of a hash of the object's JSON, whose field order is that of its class."""
    return hashlib.blake2b(item.__pydantic_serializer__.to_json(item), digest_size=8).hexdigest()

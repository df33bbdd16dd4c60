"""Frames: a 4-byte big-endian length and that many bytes of JSON."""

from __future__ import annotations

import asyncio
import struct
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from scloud.model.base import Value
from scloud.model.errors import CloudError, ErrorKind

MAX_FRAME = 64 * 1024 * 1024
"""Bytes. A full desired state of 10,000 objects is about 4 MiB; more than this is a mistake or an attack."""

_LENGTH = struct.Struct(">I")
T = TypeVar("T")


def encode(message: Value) -> bytes:
    """One frame. `CloudError(TOO_LARGE)` beyond MAX_FRAME."""
    body = message.__pydantic_serializer__.to_json(message)
    if len(body) > MAX_FRAME:
        raise CloudError(ErrorKind.TOO_LARGE, f"a message of {len(body)} bytes exceeds the link's {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


def decode(body: bytes, adapter: TypeAdapter[T]) -> T:
    """The message in a frame's body. `CloudError(INVALID)` if it is not one of the adapter's."""
    try:
        return adapter.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CloudError(
            ErrorKind.INVALID, f"a malformed message came over the link: {where}: {first['msg']}"
        ) from None


async def read_frame(reader: asyncio.StreamReader, limit: int = MAX_FRAME) -> bytes:
    """The next frame's body.

    `ConnectionError` when the other end has closed; `CloudError(TOO_LARGE)` for a frame beyond `limit`, after which
    the connection is of no more use.
    """
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > limit:
            raise CloudError(ErrorKind.TOO_LARGE, f"a frame of {length} bytes exceeds the link's {limit}")
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        raise ConnectionError("the other end of the link has closed") from error

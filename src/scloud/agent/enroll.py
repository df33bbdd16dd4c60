"""Joins this node to a cloud: `python -m scloud.agent.enroll --config FILE --token TOKEN`.

The token says which node this is, a secret that works once, and the SHA-256 of the CA's certificate. The CA's
certificate is fetched from whoever answers at the manager's address and must have that sum; everything after is
verified with it. The node's private key is made here and never leaves.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from scloud.agent.config import AgentConfig, load_config
from scloud.agent.deadlines import within
from scloud.link import pki
from scloud.link.channel import Channel, dial
from scloud.model.errors import CloudError, ErrorKind, invalid
from scloud.model.wire import CaRequest, Enroll, Enrolled, Refused, ca_answer, enroll_answer

KEY, CERTIFICATE, CA = "key.pem", "cert.pem", "ca.pem"


@dataclass(frozen=True, slots=True)
class JoinToken:
    """`NODE_ID.SECRET.CA_SHA256HEX`."""

    node: str
    secret: str
    pin: str


def parse_token(text: str) -> JoinToken:
    """`CloudError(INVALID)` unless it has the three parts."""
    parts = text.strip().split(".")
    if len(parts) != 3 or not all(parts) or len(parts[2]) != 64:
        raise invalid("token", "must be NODE.SECRET.SUM as `scloud node add` prints it")
    return JoinToken(*parts)


def address_of(text: str) -> tuple[str, int]:
    """HOST:PORT, where an IPv6 host is in brackets."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


async def enroll(manager: str, token: JoinToken, folder: Path) -> None:
    """Get a certificate and write key.pem, ca.pem and cert.pem (the last of all) into the folder."""
    host, port = address_of(manager)
    ca = await _fetch_ca(host, port, token.pin)
    key, csr = pki.make_request(token.node)
    channel = await _dial(host, port, pki.client_context(ca))
    try:
        await channel.send(Enroll(node=token.node, secret=token.secret, csr=csr))
        answer = await within("connect", "enrolling", channel.receive(enroll_answer))
    finally:
        await channel.close()
    if isinstance(answer, Refused):
        raise CloudError(ErrorKind(answer.error[0]), answer.error[1])
    await asyncio.to_thread(_write, folder, key, ca, answer)


async def _fetch_ca(host: str, port: int, pin: str) -> str:
    channel = await _dial(host, port, pki.unverified_context())
    try:
        await channel.send(CaRequest())
        answer = await within("connect", "fetching the CA's certificate", channel.receive(ca_answer))
    finally:
        await channel.close()
    if isinstance(answer, Refused):
        raise CloudError(ErrorKind(answer.error[0]), answer.error[1])
    if pki.pin_of(answer.ca) != pin:
        raise CloudError(
            ErrorKind.FORBIDDEN,
            f"what answers at {host}:{port} is not the cloud that the token is from: its CA has another checksum",
        )
    return answer.ca


async def _dial(host: str, port: int, context: ssl.SSLContext) -> Channel:
    try:
        return await dial(host, port, context)
    except OSError as error:
        raise CloudError(ErrorKind.UNAVAILABLE, f"the manager cannot be reached at {host}:{port}: {error}") from error


def _write(folder: Path, key: str, ca: str, answer: Enrolled) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # The certificate comes last: a node that has it is enrolled.
    for name, text in ((KEY, key), (CA, ca), (CERTIFICATE, answer.certificate)):
        fresh = folder / f"{name}.new"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(folder / name)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scloud.agent.enroll", description="join this node to a cloud")
    parser.add_argument("--config", type=Path, required=True, help="the node's agent.json")
    parser.add_argument("--token", required=True, help="as printed by `scloud node add`")
    options = parser.parse_args(arguments)
    try:
        config: AgentConfig = load_config(options.config)
        token = parse_token(options.token)
        asyncio.run(enroll(config.manager, token, config.pki))
    except (CloudError, OSError, ValidationError) as error:
        print(f"enroll: {error}", file=sys.stderr)
        return 1
    print(f"node {token.node} is enrolled")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The cloud's certificate authority, and this manager's own certificate."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from scloud.link import pki
from scloud.store import secrets
from scloud.store.database import Tx

OWNER = "ca"
"""Of the CA among the secrets, where several managers share it."""


class Authority:
    """Issues certificates; the manager's own are files in the folder, made anew at each start."""

    def __init__(self, ca: pki.Credentials, folder: Path, names: Sequence[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._ca = ca
        self.ca_path, self.certificate, self.key = folder / "ca.pem", folder / "manager.pem", folder / "manager.key"
        server = pki.issue_server(ca, time.time(), names)
        key, request = pki.make_request(pki.MANAGER_NAME)
        self.as_client = pki.ClientFiles(self.ca_path, folder / "client.pem", folder / "client.key")
        """With which a standby fetches images from the leader."""
        write_private(self.ca_path, ca.certificate)
        write_private(self.certificate, server.certificate)
        write_private(self.key, server.key)
        write_private(self.as_client.certificate, pki.issue_node(ca, pki.MANAGER_NAME, request, time.time()))
        write_private(self.as_client.key, key)

    @property
    def ca(self) -> str:
        return self._ca.certificate

    def issue(self, node: str, csr: str) -> str:
        return pki.issue_node(self._ca, node, csr, time.time())


def ca_in_folder(folder: Path) -> pki.Credentials:
    """One manager's own, made at its first start."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    certificate, key = folder / "ca.pem", folder / "ca.key"
    if not key.exists():
        made = pki.create_ca(time.time())
        write_private(certificate, made.certificate)
        write_private(key, made.key)
    return pki.Credentials(certificate.read_text(), key.read_text())


def ca_in_database(tx: Tx) -> pki.Credentials | None:
    """The one that several managers share; None before the first leader has made it."""
    found = secrets.secrets_of(tx, OWNER)
    return pki.Credentials(found["certificate"], found["key"]) if found else None


def make_ca_in_database(tx: Tx) -> pki.Credentials:
    """The same, made if there is none. For the leader."""
    if (found := ca_in_database(tx)) is not None:
        return found
    made = pki.create_ca(time.time())
    secrets.put(tx, OWNER, "certificate", made.certificate)
    secrets.put(tx, OWNER, "key", made.key)
    return made


def write_private(path: Path, text: str) -> None:
    """Whole or not at all, readable by its owner alone."""
    fresh = path.with_suffix(path.suffix + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)

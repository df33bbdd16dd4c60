"""SSH key pairs made here: the private half never leaves this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scloud.client.contexts import config_dir, write_private
from scloud.client.problems import failure


@dataclass(frozen=True)
class LocalKey:
    """A private key's file and its public half as one OpenSSH line. `made` says whether this call made it."""

    path: Path
    public_key: str
    made: bool


def key_path(name: str) -> Path:
    """Where the private key of the keypair with this name is kept."""
    return config_dir() / "keys" / name


def public_key_of(path: Path) -> str:
    """The public half of a private key without passphrase, as one OpenSSH line. INVALID if the file is none."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

    try:
        private = load_ssh_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise failure("invalid", f"{path} is not an SSH private key without passphrase: move it away") from error
    return private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def ensure_key(name: str) -> LocalKey:
    """The ed25519 key of this name; made, mode 0600, with NAME.pub beside it, if there is none yet."""
    path = key_path(name)
    if path.exists():
        return LocalKey(path, public_key_of(path), made=False)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() + f" scloud-{name}"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    write_private(path.with_name(f"{name}.pub"), public + "\n")
    write_private(path, private)
    return LocalKey(path, public, made=True)

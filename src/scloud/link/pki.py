"""The cloud's own certificate authority: one CA, a certificate for the manager, one for each node.

Keys are ECDSA P-256. Node certificates carry the node's id as common name and may only be used by clients; the
manager's may only be used by a server, under MANAGER_NAME. An agent checks that name and never the address, so that the
manager may move. Leaves live as long as the CA: nothing expires under a running cloud, and a removed node is refused by
its id.
"""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scloud.model.errors import CloudError, ErrorKind

MANAGER_NAME = "manager.scloud.internal"
VALIDITY = timedelta(days=20 * 365)
CLOCK_SKEW = timedelta(days=1)
NODE_PURPOSES = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
"""A node is a server to the node that a VM migrates from; never under MANAGER_NAME, which its certificate lacks."""
"""Certificates begin this long before now, for nodes whose clock is behind."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate and its private key, both PEM."""

    certificate: str
    key: str


def create_ca(now: float, name: str = "SCloudStack CA") -> Credentials:
    """A new authority. `now` is seconds since 1970."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    certificate = (
        _builder(subject, subject, key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Credentials(_pem(certificate), _key_pem(key))


def issue_server(ca: Credentials, now: float, names: Sequence[str] = ()) -> Credentials:
    """A key and certificate for the manager. `names` are more DNS names or IP addresses it is reached by."""
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives = [_alternative(name) for name in dict.fromkeys((MANAGER_NAME, *names))]
    certificate = _issue(
        ca, _name(MANAGER_NAME), key.public_key(), now, [ExtendedKeyUsageOID.SERVER_AUTH], alternatives
    )
    return Credentials(certificate, _key_pem(key))


def make_request(node: str) -> tuple[str, str]:
    """(private key, certificate signing request), both PEM; made on the node, the key never leaves it."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(_name(node)).sign(key, hashes.SHA256())
    return _key_pem(key), csr.public_bytes(serialization.Encoding.PEM).decode()


def issue_node(ca: Credentials, node: str, csr: str, now: float) -> str:
    """The node's certificate. Only the public key is taken from the request. `CloudError(INVALID)` for a bad one."""
    try:
        request = x509.load_pem_x509_csr(csr.encode())
        valid = request.is_signature_valid
        public = request.public_key()
    except ValueError as error:
        raise CloudError(ErrorKind.INVALID, f"csr: is not a certificate signing request: {error}") from error
    if not valid or not isinstance(public, ec.EllipticCurvePublicKey):
        raise CloudError(ErrorKind.INVALID, "csr: must be signed by its own elliptic-curve key")
    return _issue(ca, _name(node), public, now, NODE_PURPOSES, [])


def pin_of(ca_certificate: str) -> str:
    """SHA-256, in hex, of a CA certificate's DER: what a join token carries. `CloudError(INVALID)` if it is none."""
    try:
        certificate = x509.load_pem_x509_certificate(ca_certificate.encode())
    except ValueError as error:
        raise CloudError(ErrorKind.INVALID, f"ca: is not a certificate: {error}") from error
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def subject_of(certificate: str) -> str:
    """The common name in a certificate of ours: a node's id. `CloudError(INVALID)` if it has none."""
    try:
        names = x509.load_pem_x509_certificate(certificate.encode()).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError as error:
        raise CloudError(ErrorKind.INVALID, f"certificate: is not a certificate: {error}") from error
    if not names:
        raise CloudError(ErrorKind.INVALID, "certificate: names nobody")
    return str(names[0].value)


def server_context(certificate: Path, key: Path, ca: Path) -> ssl.SSLContext:
    """For the manager: asks for client certificates and verifies what comes; a client without one has no name.

    No session tickets: nobody resumes a session, and making them is a third of the server's work for a handshake.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def client_context(ca: Path | str, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """For the agent: trusts only this CA (a file, or PEM text) and a server called MANAGER_NAME."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    if isinstance(ca, Path):
        context.load_verify_locations(cafile=ca)
    else:
        context.load_verify_locations(cadata=ca)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


@dataclass(frozen=True, slots=True)
class ClientFiles:
    """Where a client's certificate, its key and the CA's certificate are."""

    ca: Path
    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        return client_context(self.ca, self.certificate, self.key)


def node_contexts(ca: Path, certificate: Path, key: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(server, client) between two nodes: both show a certificate of this CA. Who it is, is the caller's to check."""
    contexts = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    contexts[1].check_hostname = False
    for context in contexts:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return contexts


def unverified_context() -> ssl.SSLContext:
    """Only to fetch the CA's certificate, which is then checked against a pin."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _issue(
    ca: Credentials,
    subject: x509.Name,
    public: ec.EllipticCurvePublicKey,
    now: float,
    purposes: list[x509.ObjectIdentifier],
    alternatives: list[x509.GeneralName],
) -> str:
    authority = x509.load_pem_x509_certificate(ca.certificate.encode())
    ca_key = serialization.load_pem_private_key(ca.key.encode(), password=None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise CloudError(ErrorKind.INTERNAL, "the CA's key is not an elliptic-curve key; restore pki/ from a backup")
    builder = (
        _builder(subject, authority.subject, public, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return _pem(builder.sign(ca_key, hashes.SHA256()))


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, now: float
) -> x509.CertificateBuilder:
    moment = datetime.fromtimestamp(int(now), UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - CLOCK_SKEW)
        .not_valid_after(moment + VALIDITY)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()

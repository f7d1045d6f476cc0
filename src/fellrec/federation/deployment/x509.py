"""Certificates and keys as bytes: what is in them, and why.

Only `certificates.py` imports this module, when it is used: `cryptography` is an optional package.

An authority may sign nothing but the ends of a chain. A server's certificate is good for a server
alone and a client's for a client alone (extended key usage), so that no server can pass for a
client by what it was given to listen with. Keys are ECDSA: P-256 for TLS; P-384, in OpenSSH's form,
for Flower's SuperNodes, which take no other.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Signed:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class Validity:
    """When a certificate is good, in UTC."""

    first: datetime
    last: datetime


@dataclass(frozen=True)
class Signer:
    """An authority that is in memory."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def new_authority(name: str, validity: Validity) -> Signed:
    """Make an authority that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _named(name)
    builder = (
        _begin(subject, subject, key, validity)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _signed(builder.sign(key, hashes.SHA256()), key)


def load_signer(certificate: bytes, key: bytes) -> Signer:
    """Read an authority back; ValueError when the bytes are none, or do not belong together."""
    signer = x509.load_pem_x509_certificate(certificate)
    private = serialization.load_pem_private_key(key, password=None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is of another kind")
    if private.public_key() != signer.public_key():
        raise ValueError("the key belongs to another certificate")
    try:
        signs = signer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        signs = False
    if not signs:
        raise ValueError("the certificate is of no authority")
    return Signer(signer, private)


def sign_server(signer: Signer, name: str, hosts: Sequence[str], validity: Validity) -> Signed:
    """Make a server's certificate.

    hosts: addresses and DNS names it is reached by; ValueError for one that can't be a DNS name.
    """
    alternatives = [_host(host) for host in hosts]
    return _sign(
        signer,
        name,
        validity,
        ExtendedKeyUsageOID.SERVER_AUTH,
        x509.SubjectAlternativeName(alternatives),
    )


def sign_client(signer: Signer, name: str, validity: Validity) -> Signed:
    """Make a client's certificate, whose common name is who it is."""
    return _sign(signer, name, validity, ExtendedKeyUsageOID.CLIENT_AUTH, None)


def common_name(certificate: bytes) -> str:
    """Return whom a certificate, PEM, is made out to; ValueError where there is not one name."""
    subject = x509.load_pem_x509_certificate(certificate).subject
    (name,) = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)


def new_node_key() -> tuple[bytes, bytes]:
    """Make the key pair of a SuperNode: the public and the private one."""
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    return public + b"\n", private


def _sign(
    signer: Signer,
    name: str,
    validity: Validity,
    purpose: x509.ObjectIdentifier,
    alternatives: x509.SubjectAlternativeName | None,
) -> Signed:
    key = ec.generate_private_key(ec.SECP256R1())
    above = signer.certificate
    identifier = above.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    # No certificate is good for longer than the one that vouches for it.
    validity = Validity(validity.first, min(validity.last, above.not_valid_after_utc))
    builder = (
        _begin(_named(name), above.subject, key, validity)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
    )
    if alternatives is not None:
        builder = builder.add_extension(alternatives, critical=False)
    return _signed(builder.sign(signer.key, hashes.SHA256()), key)


def _begin(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, validity: Validity
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity.first)
        .not_valid_after(validity.last)
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    """What a key is for: an authority's signs certificates, any other proves who holds it."""
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _signed(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Signed:
    return Signed(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )

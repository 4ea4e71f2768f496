"""Certificates for one machine: an issuer kept in the data folder, and one for each part."""

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ironcart.embedded.folder import write_file
from ironcart.embedded.ports import HOST
from ironcart.embedded.process import CannotStart
from ironcart.toolkit.tls import CA, CERTIFICATE, KEY

CA_KEY = "ca.key"
CA_DAYS = 3_650
# Every start makes them anew.
DAYS = 397
# Clocks that are a little behind.
EARLIER = timedelta(minutes=5)


def issue(folder: Path, names: Iterable[str]) -> None:
    """Give each name a folder with ca.crt, tls.crt and tls.key, for this machine's addresses.

    The issuer is made on first use, everything else anew at each call. Raises `CannotStart` when
    the issuer is damaged.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key, issuer = _issuer(folder)
    for name in names:
        (folder / name).mkdir(mode=0o700, exist_ok=True)
        own = ec.generate_private_key(ec.SECP256R1())
        signed = _certificate(own, name, issuer=issuer.subject, signer=key)
        write_file(folder / name / CA, _pem(issuer))
        write_file(folder / name / KEY, _key_pem(own))
        write_file(folder / name / CERTIFICATE, _pem(signed))


def _issuer(folder: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key_path, path = folder / CA_KEY, folder / CA
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        write_file(key_path, _key_pem(key))
        subject = _name("Ironcart on this machine")
        write_file(path, _pem(_certificate(key, "", issuer=subject, signer=key)))
    try:
        found = serialization.load_pem_private_key(key_path.read_bytes(), None)
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CannotStart(f"{path} or {key_path} is damaged: delete both") from error
    assert isinstance(found, ec.EllipticCurvePrivateKey)
    return found, certificate


def _certificate(
    key: ec.EllipticCurvePrivateKey,
    name: str,
    *,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    """Sign one for `name`, good for both ends of a connection; without a name the issuer's own."""
    now = datetime.now(UTC)
    found = (
        x509.CertificateBuilder()
        .subject_name(_name(name) if name else issuer)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + timedelta(days=DAYS if name else CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=not name, path_length=None), critical=True)
        .add_extension(_usage(signs=not name), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if name:
        addresses = [x509.IPAddress(ipaddress.ip_address(each)) for each in (HOST, "::1")]
        names = [x509.DNSName("localhost"), x509.DNSName(name), *addresses]
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        found = found.add_extension(x509.SubjectAlternativeName(names), critical=False)
        found = found.add_extension(x509.ExtendedKeyUsage(both), critical=False)
    return found.sign(signer, hashes.SHA256())


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()

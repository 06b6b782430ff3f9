"""Authorities and certificates for the tests of TLS: good ones, expired ones, and those of somebody else."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """Signs certificates for 127.0.0.1, localhost and ``triton.example``."""

    name: x509.Name
    key: ec.EllipticCurvePrivateKey
    pem: bytes

    @classmethod
    def made(cls, name: str) -> "Authority":
        """An authority with a key of its own."""
        key, subject = ec.generate_private_key(ec.SECP256R1()), _name(name)
        now = datetime.datetime.now(datetime.UTC)
        built = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 3 * DAY)
            .not_valid_after(now + 3 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(subject, key, built.public_bytes(serialization.Encoding.PEM))

    def write(self, folder: Path, name: str = "caller", days: float = 1, addresses: bool = True) -> Path:
        """A folder with tls.crt, tls.key and ca.crt, as Kubernetes and cert-manager have them.

        Args:
            folder: is made; files there are replaced.
            name: of whom the certificate tells.
            days: until it ends; below 0 it has ended.
            addresses: whether it is for 127.0.0.1 and localhost, too.
        """
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
        names: list[x509.GeneralName] = [x509.DNSName("triton.example")]
        if addresses:
            names += [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        built = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * DAY)
            .not_valid_after(now + days * DAY)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in {
            "tls.crt": built.public_bytes(serialization.Encoding.PEM),
            "tls.key": key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            "ca.crt": self.pem,
        }.items():
            draft = folder / f".{file}"
            draft.write_bytes(data)
            draft.replace(folder / file)
        return folder


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

"""The certificate by which the parts of the S3 server know each other; nobody else gets an answer from them."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.settings import write_secret

# The parts of SeaweedFS, in the words of its settings.
GRPC, HTTPS = ("MASTER", "VOLUME", "FILER", "S3", "CLIENT"), ("MASTER", "VOLUME", "FILER", "CLIENT")


def make_certificate(certificate: Path, key: Path) -> None:
    """Write a certificate, signed by itself, and its key, unless they are there."""
    if certificate.exists() and key.exists():
        return
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dioptra-assets")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=20 * 365))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(private, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    write_secret(key, private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    write_secret(certificate, signed.public_bytes(pem))


def weed_settings(certificate: Path, key: Path) -> dict[str, str]:
    """The settings of SeaweedFS that make each of its parts ask for the certificate, by gRPC and by HTTP."""
    settings = {"WEED_GRPC_CA": str(certificate), "WEED_HTTPS_CLIENT_ENABLED": "true"}
    for protocol, parts in (("GRPC", GRPC), ("HTTPS", HTTPS)):
        for part in parts:
            settings[f"WEED_{protocol}_{part}_CERT"] = str(certificate)
            settings[f"WEED_{protocol}_{part}_KEY"] = str(key)
            if protocol == "HTTPS":
                settings[f"WEED_HTTPS_{part}_CA"] = str(certificate)
    return settings

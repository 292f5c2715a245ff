from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import c2pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from seawall.classification.provenance import Provenance
from seawall.core.errors import Fatal
from tests.support.model_packs import animated, encoded, plain

GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
CAPTURED = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"
NOTHING = {"c2pa_manifest": False, "c2pa_valid": False, "c2pa_trusted": False, "c2pa_ai_generated": False}
SIGNED = {"c2pa_manifest": True, "c2pa_valid": True, "c2pa_trusted": False, "c2pa_ai_generated": True}


class Signer(NamedTuple):
    """A signer of one's own, and the authority that vouches for it."""

    info: Any
    authority: str


@pytest.fixture(scope="module")
def signer() -> Signer:
    now = datetime.now(UTC)
    keys = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def name(text: str) -> x509.Name:
        attributes = ((NameOID.COMMON_NAME, text), (NameOID.ORGANIZATION_NAME, "Tests"))
        return x509.Name([x509.NameAttribute(kind, value) for kind, value in attributes])

    def certificate(subject: str, key: ec.EllipticCurvePrivateKey, authority: bool) -> x509.Certificate:
        made = (
            x509.CertificateBuilder(name("authority"), name(subject), key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(authority, None), True)
            .add_extension(
                x509.KeyUsage(not authority, False, False, False, False, authority, authority, False, False), True
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), False)
        )
        if not authority:
            made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
        return made.sign(keys[0], hashes.SHA256())

    def pem(of: x509.Certificate) -> bytes:
        return of.public_bytes(serialization.Encoding.PEM)

    authority, own = certificate("authority", keys[0], True), certificate("signer", keys[1], False)
    private = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    info = c2pa.C2paSignerInfo(alg=b"es256", sign_cert=pem(own) + pem(authority), private_key=private, ta_url=None)
    return Signer(info, pem(authority).decode())


def signed(signer: Signer, kind: str = "JPEG", source: str = GENERATED) -> bytes:
    manifest = {
        "claim_generator_info": [{"name": "tests", "version": "1"}],
        "assertions": [
            {
                "label": "c2pa.actions",
                "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": source}]},
            }
        ],
    }
    context = c2pa.Context.from_dict({"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}})
    out = io.BytesIO()
    with c2pa.Signer.from_info(signer.info) as key, c2pa.Builder(manifest, context=context) as builder:
        builder.sign(key, f"image/{kind.lower()}", io.BytesIO(encoded(plain((90, 120, 30), 64), kind)), out)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_manifest_is_read_and_what_it_says_of_a_model_recorded(signer: Signer, kind: str) -> None:
    assert Provenance().labels(signed(signer, kind)) == SIGNED


def test_a_camera_is_no_model(signer: Signer) -> None:
    assert Provenance().labels(signed(signer, source=CAPTURED)) == SIGNED | {"c2pa_ai_generated": False}


def test_a_signer_is_trusted_by_the_operators_anchors_alone(signer: Signer, tmp_path: Path) -> None:
    anchors = tmp_path / "anchors.pem"
    anchors.write_text(signer.authority)
    assert Provenance(anchors).labels(signed(signer)) == SIGNED | {"c2pa_trusted": True}
    with pytest.raises(Fatal, match="provenance_anchors"):
        Provenance(tmp_path / "absent.pem")


def test_a_picture_changed_after_signing_is_not_valid_and_still_claims_what_it_claims(signer: Signer) -> None:
    data = bytearray(signed(signer))
    data[-40] ^= 1
    assert Provenance().labels(bytes(data)) == SIGNED | {"c2pa_valid": False}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_without_a_manifest_says_nothing(kind: str) -> None:
    assert Provenance().labels(encoded(plain((1, 2, 3)), kind)) == NOTHING
    assert Provenance().labels(animated([(1, 2, 3), (3, 2, 1)])) == NOTHING


def test_what_cannot_be_searched_is_said_and_has_no_other_label(signer: Signer) -> None:
    for data in (signed(signer)[:2_000], b"", b"no picture"):
        assert Provenance().labels(data) == {"c2pa_unreadable": True}


def test_labels_stand_beside_the_models_own_and_threads_agree(signer: Signer) -> None:
    provenance = Provenance()
    data = signed(signer)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(provenance.labels, [data] * 16)) == [SIGNED] * 16
    found = provenance(data)
    assert {label.label: label.score for label in found} == {name: float(v) for name, v in SIGNED.items()}
    assert {label.model for label in found} == {f"c2pa@{c2pa.sdk_version()}"}

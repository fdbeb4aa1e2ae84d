from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from streamgw.config.compile import Compilation, Loader
from streamgw.config.documents import SourceFile
from streamgw.config.plugins import PluginSet
from streamgw.config.tls import TLSSettings
from streamgw.core.errors import ConfigError
from streamgw.core.model import Certificate, Revision, UpstreamTLS
from streamgw.plugins import BUILT_IN
from tests.support.certificates import CA_PEM, OTHER_CA, Issued, document, issue

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
A = issue("a.test", "*.b.test")
NODES = {"127.0.0.1:1": 1}


@attrs.define
class Scene:
    """A directory with one file of objects, and what is beside it."""

    directory: Path
    objects: dict[str, list[object]]
    settings: TLSSettings = TLSSettings()
    environ: dict[str, str] = attrs.Factory(dict)
    now: datetime = NOON
    loader: Loader = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.loader = Loader(
            self,
            environ=self.environ,
            tls=lambda: self.settings,
            wall_clock=lambda: self.now,
            plugins=lambda: PluginSet(dict(BUILT_IN), frozenset(BUILT_IN)),
        )

    @property
    def files(self) -> tuple[SourceFile, ...]:
        text = document(**self.objects).encode()
        name = str(self.directory / "a.yaml")
        return (SourceFile(name, text, hashlib.sha256(text).hexdigest(), "a.yaml"),)

    @property
    def revision(self) -> Revision:
        return Revision(self.files[0].digest)

    def read(self) -> Scene:
        return self

    def load(self) -> Compilation:
        return self.loader.load(())

    def warnings(self) -> list[str]:
        return [f"{warning.pointer}: {warning.message}" for warning in self.load().warnings]

    def problems(self) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self.load()
        assert all(problem.line == 1 and problem.file.endswith("a.yaml") for problem in caught.value.problems)
        return [f"{problem.pointer}: {problem.message}" for problem in caught.value.problems]

    def served(self, name: str = "a.test") -> Certificate:
        return next(self.load().snapshot.certificates.candidates(name))


def ssl_object(**fields: object) -> dict[str, object]:
    return {"id": "a", "sni": "a.test", **A.fields(), **fields}


def self_signed(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> Issued:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "alone")])
    cert = x509.CertificateBuilder(name, name, key.public_key(), 1, NOON, NOON + timedelta(days=99)).sign(
        key, hashes.SHA256()
    )
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Issued(cert.public_bytes(Encoding.PEM).decode(), text.decode())


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path, {"ssls": [ssl_object()]})


def upstream_tls(scene: Scene, **tls: object) -> UpstreamTLS:
    scene.objects["upstreams"] = [{"id": "u", "scheme": "tls", "nodes": NODES, "tls": tls}]
    scene.objects["stream_routes"] = [{"id": "r", "upstream_id": "u"}]
    (upstream,) = scene.load().snapshot.upstreams.values()
    assert upstream.tls is not None
    return upstream.tls


def test_an_object_becomes_a_certificate(scene: Scene) -> None:
    compilation = scene.load()

    certificate = scene.served()
    info = compilation.certificates["ssls", "a"]
    assert (certificate.id, certificate.names) == ("a", ("a.test",))
    assert not certificate.requires_client_certificate
    assert (certificate.issuer, certificate.fingerprint) == (info.issuer, info.fingerprint)
    assert certificate.not_after_s == info.not_after.timestamp()
    assert info.names == ("a.test", "*.b.test")
    assert compilation.warnings == ()


def test_the_slowest_key_of_an_object_and_what_its_clients_bring_decide_whether_it_signs_quickly(
    scene: Scene,
) -> None:
    assert scene.served().signs_quickly

    slow = self_signed(ec.generate_private_key(ec.SECP384R1()))
    scene.objects["ssls"] = [ssl_object(certs=[slow.cert], keys=[slow.key])]
    assert not scene.served().signs_quickly

    scene.objects["ssls"] = [ssl_object(client={"ca": CA_PEM})]
    assert not scene.served().signs_quickly


def test_a_wildcard_covers_one_label(scene: Scene) -> None:
    scene.objects["ssls"] = [ssl_object(sni="*.b.test")]
    index = scene.load().snapshot.certificates

    assert list(index.candidates("x.b.test"))
    assert not list(index.candidates("x.y.b.test"))


def test_an_object_that_is_off_is_not_looked_at(scene: Scene) -> None:
    scene.objects["ssls"] = [ssl_object(status=0, key="$env://NONE")]

    compilation = scene.load()

    assert not list(compilation.snapshot.certificates.candidates("a.test"))
    assert compilation.certificates == {}


def test_the_first_object_with_a_name_serves_it(scene: Scene) -> None:
    scene.objects["ssls"] = [
        ssl_object(id="first"),
        ssl_object(id="second"),
        {"id": "third", "snis": ["x.b.test", "a.test", "a.test"], **A.fields()},
    ]

    assert scene.served().id == "first"
    assert scene.served("x.b.test").id == "third"
    assert [warning.partition(" (")[0] for warning in scene.warnings()] == [
        "ssls[1].sni: never served for 'a.test': ssl first",
        "ssls[2].snis[1]: never served for 'a.test': ssl first",
        "ssls[2].snis[2]: never served for 'a.test': ssl first",
    ]


# What is wrong with certificates


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cert": "x" * 200}, ["ssls[0].cert: failed to parse cert: no certificate in PEM form"]),
        ({"key": CA_PEM}, ["ssls[0].key: failed to parse key: no private key in PEM form"]),
        (
            {"cert": "x" * 200, "key": CA_PEM},
            [
                "ssls[0].cert: failed to parse cert: no certificate in PEM form",
                "ssls[0].key: failed to parse key: no private key in PEM form",
            ],
        ),
        (
            {"client": {"ca": "x" * 200}},
            ["ssls[0].client.ca: failed to validate client_cert: failed to parse cert: no certificate in PEM form"],
        ),
        (
            {"client": {"ca": "$env://NONE"}},
            ["ssls[0].client.ca: failed to validate client_cert: can't find environment variable NONE"],
        ),
        (
            {"certs": [A.cert], "keys": ["$env://NONE"]},
            ["ssls[0].keys[0]: failed to handle cert-key pair[1]: can't find environment variable NONE"],
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_a_problem(scene: Scene, fields: dict[str, object], said: list[str]) -> None:
    scene.objects["ssls"] = [ssl_object(**fields)]

    assert scene.problems() == said


def test_a_key_of_another_certificate_is_a_problem(scene: Scene) -> None:
    scene.objects["ssls"] = [ssl_object(key=issue("a.test").key)]

    (said,) = scene.problems()

    assert said.startswith("ssls[0].key: this key does not belong to the certificate (")


def test_a_wrong_file_is_named(scene: Scene) -> None:
    A.write(scene.directory)
    (scene.directory / "a.key").write_text(issue("a.test").key)
    scene.objects["ssls"] = [ssl_object(cert="$file://a.pem", key="$file://a.key")]

    (said,) = scene.problems()

    assert said.endswith(f"({scene.directory}/a.key)")


def test_a_key_too_short_for_openssl_is_a_problem(scene: Scene) -> None:
    scene.settings = TLSSettings(ciphers="ALL:@SECLEVEL=5")

    assert scene.problems() == ["ssls[0].cert: OpenSSL does not take it: ee key too small"]


def test_dates_and_names_and_order_are_warnings(scene: Scene) -> None:
    old = issue("old.test", not_before=NOON - timedelta(9), not_after=NOON - timedelta(1))
    soon = issue("soon.test", not_before=NOON - timedelta(9), not_after=NOON + timedelta(20, hours=1))
    scene.objects["ssls"] = [
        {"id": "old", "snis": ["old.test", "x.test"], **old.fields()},
        {"id": "soon", "sni": "soon.test", **soon.fields()},
        {"id": "order", "sni": "a.test", "cert": A.cert + old.cert, "key": A.key},
        {"id": "mtls", "sni": "b.b.test", **A.fields(), "client": {"ca": old.cert}},
    ]

    said = [warning.partition(" (")[0] for warning in scene.warnings()]

    expired = "HAS EXPIRED at 2026-11-20 12:00 UTC: clients refuse it"
    assert sorted(said) == [
        f"ssls[0].cert: the certificate {expired}",
        "ssls[0].snis: the certificate is not for x.test: clients that verify refuse it",
        "ssls[1].cert: the certificate expires in 20 days, at 2026-12-11 13:00 UTC",
        "ssls[2].cert: certificate 1 of the chain",
        f"ssls[2].cert: certificate 2 of the chain {expired}",
        f"ssls[3].client.ca: the certificate {expired}",
    ]
    scene.settings = TLSSettings(expiry_warning_days=20)
    assert len(scene.warnings()) == 5


def test_obsolete_versions_are_a_warning(scene: Scene) -> None:
    scene.objects["ssls"] = [ssl_object(ssl_protocols=["TLSv1.1", "TLSv1.2"])]

    assert scene.warnings() == [
        "ssls[0].ssl_protocols: TLSv1.1 is obsolete (RFC 8996): ciphers of security level 0 are allowed for it"
    ]


def test_two_pairs_are_one_certificate(scene: Scene) -> None:
    other = issue("other.test", key_type=trustme.KeyType.RSA)
    scene.objects["ssls"] = [ssl_object(certs=[other.cert], keys=[other.key])]

    assert scene.warnings() == [
        "ssls[0].sni: the certificate is not for a.test: clients that verify refuse it"
    ]
    assert scene.served().fingerprint == scene.load().certificates["ssls", "a"].fingerprint


def test_a_client_certificate_may_be_required(scene: Scene) -> None:
    scene.objects["ssls"] = [ssl_object(client={"ca": CA_PEM, "depth": 0})]

    assert scene.served().requires_client_certificate


def test_a_key_that_everybody_may_read_is_a_warning(scene: Scene) -> None:
    A.write(scene.directory)
    scene.objects["ssls"] = [ssl_object(cert="$file://a.pem", key="$file://a.key")]
    assert scene.warnings() == []

    (scene.directory / "a.key").chmod(0o644)

    assert scene.warnings() == [
        f"ssls[0].key: every user of this machine can read the key in {scene.directory}/a.key"
    ]


# What is kept


def test_an_edit_elsewhere_keeps_the_context(scene: Scene) -> None:
    """With it the clients' tickets stay good."""
    before = scene.served().context

    scene.objects["upstreams"] = [{"id": "u", "nodes": {}}]
    scene.objects["ssls"] = [ssl_object(sni="x.b.test")]

    assert scene.served("x.b.test").context is before


def test_a_mistake_elsewhere_keeps_the_context(scene: Scene) -> None:
    before = scene.served().context
    objects, scene.objects = scene.objects, {"ssls": [{"id": "a"}]}
    scene.problems()

    scene.objects = objects

    assert scene.served().context is before


def test_no_two_objects_share_a_context(scene: Scene) -> None:
    """A session resumed under another name would carry a client past that name's rule."""
    scene.objects["ssls"] = [ssl_object(), ssl_object(id="b", sni="x.b.test")]

    assert scene.served().context is not scene.served("x.b.test").context


@pytest.mark.parametrize(
    "settings",
    [
        TLSSettings(protocols=("TLSv1.3",)),
        TLSSettings(session_tickets=False),
        TLSSettings(ciphers="ECDHE+AESGCM"),
    ],
)
def test_another_setting_is_another_context_and_another_revision(scene: Scene, settings: TLSSettings) -> None:
    before, revision = scene.served().context, scene.load().snapshot.revision

    scene.settings = settings

    assert scene.served().context is not before
    assert scene.load().snapshot.revision != revision


def test_a_renewed_file_is_another_revision(scene: Scene) -> None:
    A.write(scene.directory)
    scene.objects["ssls"] = [ssl_object(cert="$file://a.pem", key="$file://a.key")]
    before = scene.load().snapshot

    issue("a.test").write(scene.directory)

    assert scene.load().snapshot.revision != before.revision
    assert scene.served().fingerprint != next(before.certificates.candidates("a.test")).fingerprint
    assert scene.loader.files == {scene.directory / "a.pem", scene.directory / "a.key"}


def test_a_variable_is_part_of_the_revision(scene: Scene) -> None:
    scene.objects["ssls"] = [ssl_object(cert="$env://CERT", key="$ENV://KEY")]
    scene.environ.update(CERT=A.cert, KEY=A.key)
    before = scene.load().snapshot.revision

    renewed = issue("a.test")
    scene.environ.update(CERT=renewed.cert, KEY=renewed.key)

    assert scene.load().snapshot.revision != before


def test_a_missing_file_is_to_be_watched(scene: Scene) -> None:
    scene.objects["ssls"] = [ssl_object(cert="$file://a.pem")]

    scene.problems()

    assert scene.loader.files == {scene.directory / "a.pem"}


# Beside other faults


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"desc": 5, "key": "$env://NONE"}, ["desc: expected text, got 5", "key: can't find environment variable NONE"]),
        (
            {"cert": 5, "key": "$env://NONE", "client": {"ca": "x" * 200}},
            [
                "cert: expected text",
                "client.ca: failed to validate client_cert: failed to parse cert: no certificate in PEM form",
                "key: can't find environment variable NONE",
            ],
        ),
        (
            {"cert": "$env://NONE", "key": CA_PEM},
            ["cert: can't find environment variable NONE", "key: failed to parse key: no private key in PEM form"],
        ),
        (
            {"client": {"ca": "$env://NONE", "depth": -1}},
            [
                "client.ca: failed to validate client_cert: can't find environment variable NONE",
                "client.depth: expected an integer ≥ 0, got -1",
            ],
        ),
        ({"client": {"ca": 5}}, ["client.ca: expected text"]),
        ({"client": 5}, ["client: expected a mapping, got 5"]),
        (
            {"certs": ["x" * 200], "keys": [5], "key": CA_PEM},
            ["key: failed to parse key: no private key in PEM form", "keys[0]: expected text"],
        ),
        ({"ssl_protocols": 5}, ["ssl_protocols: expected a list, got 5"]),
        ({"status": 0, "sni": 5, "key": "$env://NONE"}, ["sni: expected a server name like db.example or *.example, got 5"]),
    ],
)  # fmt: skip
def test_a_certificate_is_looked_at_whatever_else_is_wrong_with_its_object(
    scene: Scene, fields: dict[str, object], said: list[str]
) -> None:
    """One fault of the object used to hide those of its certificates: mended, it was refused for the next one."""
    scene.objects["ssls"] = [ssl_object(**fields)]

    assert sorted(scene.problems()) == [f"ssls[0].{each}" for each in said]


@pytest.mark.parametrize(
    ("collection", "at"), [("upstreams", ""), ("services", ".upstream"), ("stream_routes", ".upstream")]
)
def test_the_tls_of_an_upstream_is_looked_at_whatever_else_is_wrong(
    scene: Scene, collection: str, at: str
) -> None:
    tls = {"verify": True, "ca_certs": "$env://NONE", "client_cert": 5, "client_key": CA_PEM}
    upstream = {"scheme": "tls", "nodes": 5, "tls": tls}
    scene.objects[collection] = [{"id": "u", "upstream": upstream} if at else {"id": "u", **upstream}]

    assert sorted(scene.problems()) == [
        f"{collection}[0]{at}.nodes: expected a mapping of host:port to weight, or a list of nodes, got 5",
        f"{collection}[0]{at}.tls.ca_certs: can't find environment variable NONE",
        f"{collection}[0]{at}.tls.client_cert: expected text",
        f"{collection}[0]{at}.tls.client_key: failed to parse key: no private key in PEM form",
    ]


def test_tls_that_is_right_is_looked_at_in_an_upstream_that_is_wrong(scene: Scene) -> None:
    scene.objects["upstreams"] = [
        {"id": "u", "scheme": "tls", "nodes": 5, "tls": {"client_cert_id": "none"}},
        {"id": "v", "scheme": "tls", "nodes": NODES, "desc": 5},
    ]

    assert [said.partition(": ")[0] for said in scene.problems()] == [
        "upstreams[0].nodes",
        "upstreams[0].tls.client_cert_id",
        "upstreams[1].desc",
    ]


def test_what_is_no_upstream_at_all_has_no_tls(scene: Scene) -> None:
    scene.objects["stream_routes"] = [{"id": "r", "upstream": 5}]

    assert scene.problems() == ["stream_routes[0].upstream: expected a mapping, got 5"]


# Upstreams


def test_an_upstream_speaks_tls_as_it_is_told(scene: Scene) -> None:
    tls = upstream_tls(scene, verify=True, ca_certs=CA_PEM, server_name="db.test")

    assert (tls.server_name, tls.verify) == ("db.test", True)
    assert tls.context.check_hostname
    assert tls.context.cert_store_stats()["x509_ca"] == 1
    assert not upstream_tls(scene).verify


def test_an_upstream_in_the_options_of_a_plugin_speaks_tls_as_it_is_told(scene: Scene) -> None:
    plain, sealed = {"nodes": {"127.0.0.1:1": 1}}, {"nodes": {"127.0.0.1:2": 1}, "scheme": "tls"}
    choices = [{"upstream": plain}, {"upstream": {**sealed, "tls": {"server_name": "db.test"}}}]
    split = {"rules": [{"weighted_upstreams": choices}]}
    scene.objects["stream_routes"] = [{"id": "r", "upstream": plain, "plugins": {"traffic-split": split}}]

    upstreams = scene.load().snapshot.upstreams.values()

    spoken = {upstream.nodes[0].port: upstream.tls.server_name for upstream in upstreams if upstream.tls}
    assert spoken == {2: "db.test"}


@pytest.mark.parametrize("ca_certs", [{}, {"ca_certs": "system"}])
def test_an_upstream_is_verified_with_what_the_system_trusts(
    scene: Scene, ca_certs: Mapping[str, str]
) -> None:
    assert upstream_tls(scene, verify=True, **ca_certs).context.check_hostname
    assert scene.loader.files == frozenset()


def test_an_upstream_is_verified_with_what_the_settings_trust(scene: Scene) -> None:
    bundle = scene.directory / "bundle.pem"
    bundle.write_text(CA_PEM + OTHER_CA.cert_pem.bytes().decode())
    scene.settings = TLSSettings(trusted_certificate=str(bundle))

    assert upstream_tls(scene, verify=True).context.cert_store_stats()["x509_ca"] == 2
    assert upstream_tls(scene, verify=True, ca_certs="system").verify
    assert scene.loader.files == frozenset()
    bundle.unlink()
    scene.objects["upstreams"] = [{"id": "u", "scheme": "tls", "nodes": NODES, "tls": {"verify": True}}]
    assert scene.problems() == [f"upstreams[0].tls.verify: {bundle}: No such file or directory"]


def test_equal_upstreams_share_a_context(scene: Scene) -> None:
    owned = {"scheme": "tls", "nodes": NODES, "tls": {"verify": True}}
    scene.objects = {
        "stream_routes": [
            {"id": "own", "server_port": 1, "upstream": owned},
            {"id": "of-service", "server_port": 2, "service_id": "s"},
            {"id": "plain", "server_port": 3, "upstream": {"nodes": NODES}},
        ],
        "services": [{"id": "s", "upstream": owned}],
    }

    own, of_service, plain = scene.load().snapshot.upstreams.values()

    assert own.tls is not None
    assert of_service.tls is not None
    assert own.tls.context is of_service.tls.context
    assert plain.tls is None


@pytest.mark.parametrize("by_id", [True, False])
def test_an_upstream_is_shown_a_certificate(scene: Scene, by_id: bool) -> None:
    me = issue("me")
    scene.objects["ssls"] = [{"id": "me", "type": "client", **me.fields()}]
    shown = {"client_cert_id": "me"} if by_id else {"client_cert": me.cert, "client_key": me.key}
    without = upstream_tls(scene).context

    assert upstream_tls(scene, **shown).context is not without
    assert scene.load().certificates.keys() == {("ssls", "me")}
    assert not list(scene.load().snapshot.certificates.candidates("me"))


@pytest.mark.parametrize(
    ("tls", "said"),
    [
        ({"client_cert_id": "none"}, ".client_cert_id: failed to fetch ssl info by ssl id [none], response code: 404"),
        ({"client_cert_id": "a"}, ".client_cert_id: failed to fetch ssl info by ssl id [a], wrong ssl type"),
        ({"client_cert_id": "off"}, ".client_cert_id: failed to fetch ssl info by ssl id [off], it is disabled (status: 0)"),
        ({"client_cert": A.cert, "client_key": "$env://NONE"}, ".client_key: can't find environment variable NONE"),
        ({"verify": True, "ca_certs": "x" * 200}, ".ca_certs: failed to parse cert: no certificate in PEM form"),
    ],
)  # fmt: skip
def test_what_an_upstream_cannot_use_is_a_problem(scene: Scene, tls: dict[str, object], said: str) -> None:
    scene.objects["ssls"] = [ssl_object(), {"id": "off", "type": "client", "status": 0, **A.fields()}]
    scene.objects["upstreams"] = [{"id": "u", "scheme": "tls", "nodes": NODES, "tls": tls}]

    assert scene.problems() == [f"upstreams[0].tls{said}"]


def test_a_certificate_that_is_named_has_to_be_there_even_if_it_does_nothing(scene: Scene) -> None:
    """Without `scheme: tls`."""
    scene.objects["ssls"] = [{"id": "me", "type": "client", **A.fields()}]
    upstreams = [{"id": name, "nodes": NODES, "tls": {"client_cert_id": name}} for name in ("me", "none")]
    scene.objects["upstreams"] = upstreams

    said = "failed to fetch ssl info by ssl id [none], response code: 404"
    assert scene.problems() == [f"upstreams[1].tls.client_cert_id: {said}"]
    scene.objects["upstreams"] = upstreams[:1]
    scene.load()


def test_a_certificate_that_openssl_refuses_is_a_problem_of_the_upstream(scene: Scene) -> None:
    weak = self_signed(rsa.generate_private_key(65537, 1024))
    tls = {"client_cert": weak.cert, "client_key": weak.key}
    scene.objects["upstreams"] = [{"id": "u", "scheme": "tls", "nodes": NODES, "tls": tls}]

    assert scene.problems() == ["upstreams[0].tls.client_cert: OpenSSL does not take it: ee key too small"]


@pytest.mark.parametrize("broken", [{"id": "me", "type": "client", "cert": 5}, {"id": "me", "type": "client", "cert": "x" * 200, "key": A.key}])  # fmt: skip
def test_a_broken_client_certificate_is_one_problem(scene: Scene, broken: dict[str, object]) -> None:
    scene.objects["ssls"] = [broken]
    scene.objects["upstreams"] = [
        {"id": "u", "scheme": "tls", "nodes": NODES, "tls": {"client_cert_id": "me"}}
    ]

    assert all(said.startswith("ssls[0]") for said in scene.problems())


def test_no_secret_is_in_any_message(scene: Scene) -> None:
    body = A.key.splitlines()[1]
    scene.objects["ssls"] = [ssl_object(key=A.key.replace("BEGIN", "BEGUN")), ssl_object(id="b", cert=A.key)]

    assert body not in "".join(scene.problems())
    assert body not in repr(scene.files)

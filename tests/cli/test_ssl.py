"""streamgw ssl"""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
import yaml

from tests.cli.conftest import Desk
from tests.support.certificates import CA, CA_PEM, document, issue

TLS = "apisix: {stream_proxy: {tcp: [{addr: '127.0.0.1:9100', tls: true}]}}\n"


@pytest.fixture
def shop(desk: Desk) -> Desk:
    """A desk with a TLS listener and the files of two certificates beside it."""
    desk.config.write_text(TLS)
    issue("a.test.com").write(desk.directory, "a")
    issue("b.test.com", "*.b.test.com", "127.0.0.1").write(desk.directory, "b")
    (desk.directory / "ca.pem").write_text(CA_PEM)
    return desk


def written(desk: Desk, name: str) -> dict[str, object]:
    found = yaml.safe_load((desk.routes / "ssls" / f"{name}.yaml").read_text())["ssls"][0]
    assert isinstance(found, dict)
    return found


def test_a_certificate_is_added_in_a_file_that_only_its_owner_reads(shop: Desk) -> None:
    result = shop.run("ssl", "add", "--cert", "a.pem", "--key", "a.key", "--sni", "a.test.com")

    assert (result.exit_code, result.stdout) == (0, "routes.d/ssls/a.test.com.yaml\n")
    file = shop.routes / "ssls" / "a.test.com.yaml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert text.startswith(
        "ssls:\n  - id: a.test.com\n    sni: a.test.com\n    cert: |\n      -----BEGIN CERT"
    )
    assert "\n    key: |\n      -----BEGIN " in text
    issued = written(shop, "a.test.com")
    assert issued["cert"] == (shop.directory / "a.pem").read_text()
    assert issued["key"] == (shop.directory / "a.key").read_text()


def test_without_names_those_of_the_certificate_count(shop: Desk) -> None:
    result = shop.run("ssl", "add", "--cert", "b.pem", "--key", "b.key")

    assert result.stdout == "routes.d/ssls/b.test.com.yaml\n"
    assert written(shop, "b.test.com")["snis"] == ["b.test.com", "*.b.test.com"], (
        "an address is no server name"
    )


def test_every_option_has_its_field(shop: Desk) -> None:
    issue("a.test.com", key_type=trustme.KeyType.RSA).write(shop.directory, "rsa")

    result = shop.run(
        *("ssl", "add", "both", "--cert", "a.pem", "--key", "a.key", "--cert", "rsa.pem", "--key", "rsa.key"),
        *("--sni", "*.Test.com", "--client-ca", "ca.pem", "--depth", "0", "--ssl-protocol", "TLSv1.3"),
        *("--desc", "every option", "--label", "team=db"),
    )

    assert result.exit_code == 0
    made = written(shop, "both")
    assert (made["desc"], made["labels"], made["sni"]) == ("every option", {"team": "db"}, "*.Test.com")
    assert made["client"] == {"ca": CA_PEM, "depth": 0}
    assert made["ssl_protocols"] == ["TLSv1.3"]
    assert made["certs"] == [(shop.directory / "rsa.pem").read_text()]
    assert made["keys"] == [(shop.directory / "rsa.key").read_text()]
    text = (shop.routes / "ssls" / "both.yaml").read_text()
    assert "\n    certs:\n      - |\n        -----BEGIN CERTIFICATE-----\n" in text
    assert "ECDSA P-256 + RSA 2048" in shop.run("ssl", "list").stdout


def test_files_can_be_named_instead_of_copied(shop: Desk) -> None:
    result = shop.run(
        *("ssl", "add", "a", "--cert", "a.pem", "--key", str(shop.directory / "a.key"), "--by-reference"),
        *("--client-ca", "ca.pem"),
    )

    assert result.exit_code == 0
    made = written(shop, "a")
    assert made["cert"] == "$file://../../a.pem"
    assert made["key"] == f"$file://{shop.directory}/a.key"
    assert made["client"] == {"ca": "$file://../../ca.pem"}
    assert shop.run("check").exit_code == 0


def test_a_certificate_for_upstreams_has_no_names(shop: Desk) -> None:
    added = shop.run("ssl", "add", "--type", "client", "--cert", "a.pem", "--key", "a.key")
    used = shop.run("route", "add", "--node", "a:1", "--tls-client-cert-id", "a", "--tls-verify")

    assert (added.exit_code, added.stdout) == (0, "routes.d/ssls/a.yaml\n")
    assert used.exit_code == 0
    assert written(shop, "a")["type"] == "client"
    assert "(shown to upstreams)" in shop.run("ssl", "list").stdout
    assert shop.run("ssl", "remove", "a").exit_code == 65, "a route needs it"


def test_a_certificate_that_is_there_is_not_added_again(shop: Desk) -> None:
    command = ["ssl", "add", "--cert", "a.pem", "--key", "a.key"]
    shop.run(*command)

    result = shop.run(*command)

    assert result.exit_code == 73
    assert "routes.d/ssls/a.test.com.yaml:2: ssls a.test.com is there already" in result.stderr


def test_a_pair_that_does_not_belong_together_is_not_written(shop: Desk) -> None:
    result = shop.run("ssl", "add", "--cert", "a.pem", "--key", "b.key")

    assert result.exit_code == 65
    assert "error: routes.d/ssls/a.test.com.yaml:" in result.stderr
    assert result.stderr.endswith("nothing was written\n")
    assert not (shop.routes / "ssls").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give a --cert and its --key"),
        (["--cert", "a.pem"], "give a --cert and its --key"),
        (["--cert", "a.pem", "--key", "nix.key"], "File 'nix.key' does not exist"),
        (["--cert", "a.pem", "--key", "a.key", "--depth", "2"], "--depth belongs to --client-ca"),
        (
            ["--cert", "a.pem", "--key", "a.key", "--type", "client", "--sni", "a"],
            "--type client is one pair",
        ),
        (["--cert", "ca.pem", "--key", "a.key"], "ca.pem names no host (subjectAltName): give --sni"),
    ],
)
def test_wrong_usage(shop: Desk, options: list[str], said: str) -> None:
    result = shop.run("ssl", "add", *options)

    assert result.exit_code == 2
    assert said in result.stderr


def test_renewing_replaces_the_pair_and_nothing_else(shop: Desk) -> None:
    shop.run("ssl", "add", "--cert", "a.pem", "--key", "a.key", "--client-ca", "ca.pem", "--desc", "x")
    file = shop.routes / "ssls" / "a.test.com.yaml"
    file.write_text(f"# ours\n{file.read_text()}")
    old = json.loads(shop.run("ssl", "list", "-o", "json").stdout)[0]
    issue("a.test.com").write(shop.directory, "new")

    result = shop.run("ssl", "renew", "a.test.com", "--cert", "new.pem", "--key", "new.key")

    assert (result.exit_code, result.stdout) == (0, "routes.d/ssls/a.test.com.yaml\n")
    assert file.read_text().startswith("# ours\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert written(shop, "a.test.com")["desc"] == "x"
    new = json.loads(shop.run("ssl", "list", "-o", "json").stdout)[0]
    assert new.pop("certificates") != old.pop("certificates")
    assert new == old
    wrong = shop.run("ssl", "renew", "a.test.com", "--cert", "new.pem", "--key", "b.key")
    assert (wrong.exit_code, written(shop, "a.test.com")["cert"]) == (
        65,
        (shop.directory / "new.pem").read_text(),
    )


def test_certificates_are_listed_without_keys(shop: Desk) -> None:
    shop.run("ssl", "add", "--cert", "a.pem", "--key", "a.key", "--client-ca", "ca.pem")
    shop.run("ssl", "disable", "a.test.com")

    table, data = shop.run("ssl", "list"), shop.run("ssl", "list", "-o", "json")

    assert table.stdout.split("\n")[0].split() == (
        ["ID", "NAMES", "ISSUER", "DAYS", "LEFT", "KEY", "FINGERPRINT", "mTLS", "STATUS", "FILE"]
    )
    assert "required  disabled  routes.d/ssls/a.test.com.yaml:2" in table.stdout
    (one,) = json.loads(data.stdout)
    assert (one["id"], one["names"], one["enabled"]) == ("a.test.com", ["a.test.com"], False)
    assert one["requires_client_certificate"] is True
    assert one["certificates"][0]["key_type"] == "ECDSA P-256"
    assert one["certificates"][0]["fingerprint"].startswith(table.stdout.split("ECDSA P-256")[1].split()[0])
    assert "KEY-----" not in data.stdout + shop.run("ssl", "list", "-o", "yaml").stdout


def test_what_cannot_be_read_is_listed_with_its_trouble(shop: Desk) -> None:
    (shop.routes / "z.yaml").write_text(
        document(ssls=[{"id": "z", "sni": "z", "cert": "$file://nix.pem", "key": "$env://NIX"}, {"id": "y"}])
    )

    result = shop.run("ssl", "list")

    assert result.exit_code == 65, "y has problems"
    assert "nix.pem: No such file or directory" in result.stdout
    assert json.loads(shop.run("ssl", "list", "-o", "json").stdout)[0]["problem"].endswith(
        "No such file or directory"
    )


def test_rows_turn_yellow_and_red(shop: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[str] = []

    def note_styles(_: object, __: object, *, styles: list[str]) -> None:
        noted.extend(styles)

    monkeypatch.setattr("streamgw.cli.ssl.print_table", note_styles)
    now = datetime.now(UTC)
    days = {"gone": -1, "urgent": 6.5, "soon": 20.5, "fine": 50}
    objects: list[object] = [
        {"id": name, "sni": name, **issue(name, not_after=now + timedelta(days=left)).fields()}
        for name, left in days.items()
    ]
    (shop.routes / "z.yaml").write_text(document(ssls=objects))

    assert shop.run("ssl", "list").exit_code == 0

    assert noted == ["red", "red", "yellow", ""]


@pytest.mark.parametrize("output", ["yaml", "json", "table"])
def test_one_certificate_is_shown_with_its_keys_hidden(shop: Desk, output: str) -> None:
    shop.run(
        *("ssl", "add", "--cert", "a.pem", "--key", "a.key", "--cert", "b.pem", "--key", "b.key"),
        *("--sni", "a.test.com"),
    )

    result = shop.run("ssl", "get", "a.test.com", "-o", output)

    assert result.exit_code == 0
    assert "BEGIN CERTIFICATE" in result.stdout
    assert result.stdout.count("***") == 2
    assert "KEY-----" not in result.stdout


def test_references_to_keys_give_nothing_away(shop: Desk) -> None:
    shop.run("ssl", "add", "a", "--cert", "a.pem", "--key", "a.key", "--by-reference")

    assert "key: $file://../../a.key" in shop.run("ssl", "get", "a").stdout.replace('"', "")


def test_switching_off_and_on_and_away(shop: Desk) -> None:
    shop.run("ssl", "add", "a", "--cert", "a.pem", "--key", "a.key")

    assert shop.run("ssl", "disable", "a").exit_code == 0
    assert written(shop, "a")["status"] == 0
    assert shop.run("ssl", "enable", "a").exit_code == 0
    assert shop.run("ssl", "enable", "a").exit_code == 0
    assert written(shop, "a")["status"] == 1
    assert shop.run("ssl", "remove", "a").stdout == "removed routes.d/ssls/a.yaml\n"
    assert shop.run("ssl", "remove", "a").exit_code == 65


def test_checking_certificates_that_are_fine(shop: Desk) -> None:
    assert shop.run("ssl", "check").stdout == "ok: 0 certificates\n"
    shop.run("ssl", "add", "--cert", "a.pem", "--key", "a.key")

    result = shop.run("ssl", "check")

    assert (result.exit_code, result.stdout) == (0, "ok: 1 certificate\n")


def test_checking_finds_what_clients_would_refuse(shop: Desk) -> None:
    soon = datetime.now(UTC) + timedelta(days=10.5)
    objects: list[object] = [
        {"id": "soon", "sni": "a.test", **issue("a.test", not_after=soon).fields()},
        {"id": "name", "sni": "other.test", **issue("b.test").fields()},
    ]
    (shop.routes / "z.yaml").write_text(document(ssls=objects))

    by_default, ten = shop.run("ssl", "check"), shop.run("ssl", "check", "--days", "10")

    assert by_default.exit_code == ten.exit_code == 65
    assert "ssls[0].cert: the certificate expires in 10 days" in by_default.stdout
    assert "ssls[1].sni: the certificate is not for other.test" in by_default.stdout
    assert by_default.stdout.endswith("2 problems\n")
    assert ten.stdout.endswith("1 problem\n"), "within ten days: not yet"


def test_checking_says_first_what_rejects_everything(shop: Desk) -> None:
    (shop.routes / "z.yaml").write_text(
        document(ssls=[{"id": "z", "sni": "z", "cert": issue("z").cert, "key": issue("z").key}])
    )

    result = shop.run("ssl", "check", "-o", "json")

    assert result.exit_code == 65
    said = json.loads(result.stdout)
    assert said["ok"] is False
    assert [problem["pointer"] for problem in said["problems"]] == ["ssls[0].key"]


def test_a_chain_is_added_whole(shop: Desk) -> None:
    issue("deep.test", ca=CA.create_child_ca()).write(shop.directory, "deep")

    assert shop.run("ssl", "add", "--cert", "deep.pem", "--key", "deep.key").exit_code == 0

    assert str(written(shop, "deep.test")["cert"]).count("BEGIN CERTIFICATE") == 2
    assert shop.run("ssl", "check").exit_code == 0
    assert Path("deep.pem").exists(), "files stay where they are"

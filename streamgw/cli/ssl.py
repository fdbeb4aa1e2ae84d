"""`streamgw ssl`: certificates, with the names they are for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs
import click

from streamgw.cli.certificates import CERTIFICATE, KEY, Card, names_in, read_card, read_pem, references
from streamgw.cli.failure import DATA, show_problems
from streamgw.cli.objects import (
    Target,
    add_get,
    add_object,
    add_remove,
    add_switch,
    change_object,
    complete_id,
    read_documents,
    slugs,
    with_wait,
)
from streamgw.cli.options import read_settings, with_output, with_paths
from streamgw.cli.output import print_data, print_table
from streamgw.cli.upstream import build_description, file_reference
from streamgw.config.compile import Loader
from streamgw.config.store import Store
from streamgw.core.errors import ConfigError
from streamgw.process.plugins import plugin_set

_COLLECTION: Final = "ssls"
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_URGENT_DAYS: Final = 7
"""From here on a row of `ssl list` is red; yellow from where a reload begins to warn."""


@click.group()
def ssl() -> None:
    """Add, list, renew, check and remove certificates."""


@attrs.frozen
class _Files:
    """Certificate and key files, in pairs."""

    certs: tuple[Path, ...]
    keys: tuple[Path, ...]
    by_reference: bool
    directory: Path
    """Where the object is written: what it names is read relative to that."""

    def fields(self) -> dict[str, object]:
        """`cert` and `key`, and with several pairs `certs` and `keys`."""
        certs = [self._value(path, CERTIFICATE) for path in self.certs]
        keys = [self._value(path, KEY) for path in self.keys]
        more = {"certs": certs[1:], "keys": keys[1:]} if certs[1:] else {}
        return {"cert": certs[0], "key": keys[0], **more}

    def _value(self, path: Path, kind: str) -> str:
        return file_reference(str(path), self.directory) if self.by_reference else read_pem(path, kind)


def _pairs(cert: tuple[Path, ...], key: tuple[Path, ...], by_reference: bool, routes: Path) -> _Files:
    if len(cert) != len(key) or not cert:
        raise click.UsageError("give a --cert and its --key; several pairs in the same order")
    return _Files(cert, key, by_reference, routes / _COLLECTION)


@ssl.command()
@with_paths
@click.argument("id_", metavar="[ID]", required=False)
@click.option("--cert", multiple=True, type=_FILE, help="PEM file: the certificate, then its chain.")
@click.option(
    "--key", multiple=True, type=_FILE, help="PEM file. Repeat both for a second pair: RSA and ECDSA."
)
@click.option(
    "--sni", multiple=True, help="Name to serve it for. May be repeated.  [default: the certificate's]"
)
@click.option("--client-ca", type=_FILE, help="Clients must show a certificate of these CAs.")
@click.option(
    "--depth", type=click.IntRange(0), help="Intermediates between theirs and the CA's.  [default: 1]"
)
@click.option(
    "--ssl-protocol",
    multiple=True,
    type=click.Choice(["TLSv1.1", "TLSv1.2", "TLSv1.3"]),
    help="Speak only this. May be repeated.",
)
@click.option(
    *("--type", "kind"),
    type=click.Choice(["server", "client"]),
    default="server",
    show_default=True,
    help="client: to be shown to upstreams (tls.client_cert_id).",
)
@click.option(
    "--by-reference", is_flag=True, help="Name the files ($file://…) instead of copying what is in them."
)
@click.option("--desc", help="What it is for.")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="May be repeated.")
@with_wait
def add(  # noqa: PLR0913, PLR0917  # one parameter per option
    config: Path,
    routes: Path,
    id_: str | None,
    cert: tuple[Path, ...],
    key: tuple[Path, ...],
    sni: tuple[str, ...],
    client_ca: Path | None,
    depth: int | None,
    ssl_protocol: tuple[str, ...],
    kind: str,
    by_reference: bool,
    desc: str | None,
    label: tuple[str, ...],
    wait: bool,
    timeout_s: float,
    url: str | None,
) -> None:
    """Add a certificate in a file of its own, routes.d/ssls/ID.yaml, and print that file.

    Only its owner may read that file. The directory is checked with it first: a key that does not belong to the
    certificate, a broken chain, a name that is taken. If anything is wrong, nothing is written.

    \b
    streamgw ssl add --cert a.pem --key a.key --sni a.test.com
    streamgw ssl add partners --cert p.pem --key p.key --client-ca ca.pem --wait
    """  # noqa: D301  # \b is Click's mark for lines that stay as they are
    files = _pairs(cert, key, by_reference, routes)
    if depth is not None and client_ca is None:
        raise click.UsageError("--depth belongs to --client-ca")
    if kind == "client" and (sni or client_ca or ssl_protocol or cert[1:]):
        raise click.UsageError("--type client is one pair and no more")
    names = [] if kind == "client" else list(sni) or names_in(cert[0])
    data = {
        **build_description(None, desc, label),
        **({"type": kind} if kind == "client" else {}),
        **({"snis": names} if names[1:] else {"sni": names[0]} if names else {}),
        **files.fields(),
        **({"client": _client(client_ca, depth, files)} if client_ca else {}),
        **({"ssl_protocols": list(ssl_protocol)} if ssl_protocol else {}),
    }
    # No second id is tried, as for routes: two certificates for one name are rarely meant, and only one is served.
    word = names[0].lower().replace("*", "any") if names else cert[0].stem
    target = Target(config, routes, wait, timeout_s, url)
    add_object(target, _COLLECTION, iter([id_ or next(slugs([word], otherwise="certificate"))]), data)


def _client(ca: Path, depth: int | None, files: _Files) -> dict[str, object]:
    value = file_reference(str(ca), files.directory) if files.by_reference else read_pem(ca, CERTIFICATE)
    return {"ca": value, **({"depth": depth} if depth is not None else {})}


@ssl.command()
@with_paths
@click.argument("id_", metavar="ID", shell_complete=complete_id(_COLLECTION))
@click.option("--cert", multiple=True, type=_FILE, help="As in `add`.")
@click.option("--key", multiple=True, type=_FILE, help="As in `add`.")
@click.option("--by-reference", is_flag=True, help="As in `add`.")
@with_wait
def renew(  # noqa: PLR0913, PLR0917  # one parameter per option
    config: Path,
    routes: Path,
    id_: str,
    cert: tuple[Path, ...],
    key: tuple[Path, ...],
    by_reference: bool,
    wait: bool,
    timeout_s: float,
    url: str | None,
) -> None:
    """Replace certificate and key where they stand, both at once. Names and everything else stay.

    Sessions go on; whoever connects next is served the new one. Files that an object only names need no `renew`:
    put new ones in their place.
    """
    fields = _pairs(cert, key, by_reference, routes).fields()
    old = {"cert", "key", "certs", "keys"}

    def renewed(data: Mapping[str, object]) -> Mapping[str, object]:
        return {**{name: value for name, value in data.items() if name not in old}, **fields}

    change_object(Target(config, routes, wait, timeout_s, url), (_COLLECTION, id_), renewed)


@ssl.command(name="list")
@with_paths
@with_output(default="table")
def list_(config: Path, routes: Path, output: str) -> None:
    """List the certificates: names, issuer, days left, fingerprint. Never keys."""
    soon_days = read_settings(config).tls.expiry_warning_days
    documents, trouble = read_documents(routes, _COLLECTION)
    look = references()
    cards = [read_card(document, look) for document in documents]
    now = datetime.now(UTC)
    if output == "table":
        print_table(
            _HEADINGS,
            [_row(card, now) for card in cards],
            styles=[_style(card, now, soon_days) for card in cards],
        )
    else:
        print_data([_as_data(card, now) for card in cards], output)
    if trouble:
        raise trouble


_HEADINGS: Final = ("ID", "NAMES", "ISSUER", "DAYS LEFT", "KEY", "FINGERPRINT", "mTLS", "STATUS", "FILE")


def _row(card: Card, now: datetime) -> list[str]:
    data, days = card.document.data, card.days_left(now)
    client = data.get("type") == "client"
    return [
        card.document.key[1],
        "(shown to upstreams)" if client else ", ".join(card.names),
        _once([info.issuer for info in card.pairs]) or card.trouble,
        "?" if days is None else "EXPIRED" if days < 0 else str(days),
        _once([info.key_type for info in card.pairs]),
        _once([info.fingerprint[:16] for info in card.pairs]),
        "required" if card.wants_client_certificate else "",
        "disabled" if data.get("status", 1) == 0 else "enabled",
        str(card.document.source),
    ]


def _once(words: Sequence[str]) -> str:
    return " + ".join(dict.fromkeys(words))


def _style(card: Card, now: datetime, soon_days: int) -> str:
    days = card.days_left(now)
    if days is None or days < _URGENT_DAYS:
        return "red"
    return "yellow" if days < soon_days else ""


def _as_data(card: Card, now: datetime) -> dict[str, Any]:
    data = card.document.data
    return {
        "id": card.document.key[1],
        "type": data.get("type", "server"),
        "names": list(card.names),
        "enabled": data.get("status", 1) != 0,
        "requires_client_certificate": card.wants_client_certificate,
        "days_left": card.days_left(now),
        "certificates": [
            {
                "names": list(info.names),
                "subject": info.subject,
                "issuer": info.issuer,
                "serial": info.serial,
                "not_before": info.not_before.isoformat(),
                "not_after": info.not_after.isoformat(),
                "fingerprint": info.fingerprint,
                "key_type": info.key_type,
            }
            for info in card.pairs
        ],
        **({"problem": card.trouble} if card.trouble else {}),
        "file": card.document.source.file,
        "line": card.document.source.line,
    }


@ssl.command()
@with_paths
@click.option(
    "--days",
    type=click.IntRange(0),
    help="Wrong is also what expires within so many days.  [default: streamgw.tls.expiry_warning_days]",
)
@click.option(*("-o", "--output"), type=click.Choice(["human", "json"]), default="human", show_default=True)
@click.pass_context
def check(ctx: click.Context, config: Path, routes: Path, days: int | None, output: str) -> None:
    """Say what is wrong with the certificates: pairs, chains, dates, names, who may read a key.

    Needs no running gateway. What `check` warns of is an error here: exits with 65, for a job that mails it. Disabled
    certificates are not looked at.
    """
    settings = read_settings(config)
    tls = settings.tls if days is None else attrs.evolve(settings.tls, expiry_warning_days=days)
    count = 0
    try:
        found = Loader(
            Store(routes), environ=os.environ, tls=lambda: tls, plugins=lambda: plugin_set(settings)
        ).load(settings.listeners)
    except ConfigError as error:
        problems = error.problems
    else:
        problems = tuple(
            warning for warning in found.warnings if _ABOUT_A_CERTIFICATE.search(warning.pointer)
        )
        count = len(found.certificates)
    if output == "json":
        shown = [problem.as_data() for problem in problems]
        print_data({"ok": not problems, "problems": shown, "certificates": count}, "json")
    else:
        summary = (
            f"{len(problems)} problem{'s'[: len(problems) > 1]}" if problems else f"ok: {_counted(count)}"
        )
        click.echo("\n".join([*show_problems(problems), summary]))
    ctx.exit(DATA if problems else 0)


_ABOUT_A_CERTIFICATE: Final = re.compile(
    r"^ssls\[\d+\]\.(certs?|keys?|snis?|client\.ca)\b|\btls\.(client_cert|client_key|ca_certs)\b"
)


def _counted(count: int) -> str:
    return f"{count} certificate{'' if count == 1 else 's'}"


add_get(ssl, _COLLECTION, "Print one certificate as it is written, with *** for keys.")
add_remove(ssl, _COLLECTION, "Remove a certificate. Sessions that it secures go on.")
add_switch(
    ssl,
    _COLLECTION,
    enable="Serve a certificate again.",
    disable="Stop serving a certificate. Only its status changes in the file.",
)

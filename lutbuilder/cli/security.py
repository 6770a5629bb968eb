"""`lutbuilder security`: who may talk to a coordinator. Tokens, certificates, revocation, a new CA."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lutbuilder.cli.console import Debug, Json, StateDir, emit_json, errors_shown, pairs, say, table
from lutbuilder.cli.places import Coordinator, InsecurePlaintext, StoreUrl
from lutbuilder.cli.values import duration_s, duration_text, listen_address

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from lutbuilder.coordinator.trust.access import Security
    from lutbuilder_agent.wire.join_api import Inventory, IssuedToken, KnownCertificate, KnownToken, Role

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def security() -> None:
    """Decide who may talk to a coordinator: tokens to join with, certificates, revocation, a new CA.

    \b
    Examples:
      lutbuilder security token
      lutbuilder security token --role reader --uses 10 --ttl 8h
      lutbuilder security list
      lutbuilder security revoke bench-pi --reason "phone lost"
      lutbuilder security rotate
    """


@app.command()
def init(store: StoreUrl = None, state_dir: StateDir = None, json_: Json = False, debug: Debug = False) -> None:
    """Make the CA, before the first start of a coordinator would.

    \b
    Examples:
      lutbuilder security init
      lutbuilder security init --state-dir /srv/lutbuilder
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.coordinator.trust.access import here

        state, store_at = _places(state_dir, store)
        with here(state, store_at, may_make=True) as trust:
            if json_:
                emit_json({"made": trust.is_new, "ca": trust.pin, "folder": trust.folder})
                return
            say("made a new CA" if trust.is_new else "there is a CA already; nothing was changed")
            pairs("", [("CA", trust.pin), ("folder", str(trust.folder))])
            say("next: lutbuilder serve --listen 0.0.0.0:7070")


@app.command()
def token(
    role: Annotated[str, typer.Option(help="What it is good for: agent, reader or admin.")] = "agent",
    ttl: Annotated[str, typer.Option(help="How long: 30m, 24h, at most 30 days.")] = "24h",
    uses: Annotated[int, typer.Option(help="How many may join with it.")] = 1,
    name: Annotated[
        str, typer.Option(help="The only name that may join with it [default: any].", show_default=False)
    ] = "",
    join: Annotated[
        str | None,
        typer.Option(
            "--join",
            metavar="HOST:PORT",
            help="Where joins are served, for the line [default: where they last were].",
            show_default=False,
        ),
    ] = None,
    qr: Annotated[bool, typer.Option("--qr", help="Draw the line as a QR code too.")] = False,
    coordinator: Coordinator = None,
    insecure_plaintext: InsecurePlaintext = False,
    store: StoreUrl = None,
    state_dir: StateDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Make a token, and print the line to paste where somebody shall join.

    The token is shown this once; a list shows its first two groups only.

    \b
    Examples:
      lutbuilder security token
      lutbuilder security token --name bench-pi --ttl 30m
      lutbuilder security token --uses 20 --qr
      lutbuilder security token --role admin --coordinator lab:7070
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.coordinator.trust.authority import Trust, line_for
        from lutbuilder_agent.wire.join_api import TokenAsk

        ask = TokenAsk(role=_role(role), ttl_s=duration_s(ttl, option="--ttl"), uses=uses, name=name)
        where = "" if join is None else listen_address(join, option="--join")
        with _opened(coordinator, state_dir, store, insecure_plaintext) as opened:
            issued = opened.issue_token(ask)
        line = line_for(issued, where)
        if json_:
            emit_json(_issued_data(issued, line))
            return
        print(line)
        if qr:
            say(Trust.join_qr(line))
        people = "one" if uses == 1 else f"up to {uses}"
        say(f"good for {people} within {duration_text(issued.ttl_s)}; paste it where the {role} shall run")


@app.command()
def show(store: StoreUrl = None, state_dir: StateDir = None, json_: Json = False, debug: Debug = False) -> None:
    """Show the CA, and what the coordinator's own certificate says.

    \b
    Examples:
      lutbuilder security show
      lutbuilder security show --json
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder.coordinator.trust.access import here
        from lutbuilder.coordinator.trust.certificates import expiry_s, server_names

        state, store_at = _places(state_dir, store)
        with here(state, store_at) as trust:
            server = trust.server_certificate()
            names = server_names(server.certificate)
            cas = trust.inventory().cas
            if json_:
                emit_json(
                    {
                        "folder": trust.folder,
                        "ca": trust.pin,
                        "cas": cas,
                        "server": {"names": names, "expires_s": expiry_s(server.certificate)},
                        "join": trust.last_join_address(),
                    }
                )
                return
            pairs("", [("folder", str(trust.folder)), ("joins served at", trust.last_join_address())])
            for ca in cas:
                until = "signs" if ca.until_s is None else f"trusted until {_moment(ca.until_s)}"
                pairs(
                    "", [("CA", f"sha256:{ca.sha256}"), ("", ""), ("state", until), ("expires", _moment(ca.expires_s))]
                )
            pairs("certificate", [("names", ", ".join(names)), ("expires", _moment(expiry_s(server.certificate)))])


@app.command("list")
def list_(
    all_: Annotated[bool, typer.Option("--all", help="Those that are revoked or used up too.")] = False,
    coordinator: Coordinator = None,
    insecure_plaintext: InsecurePlaintext = False,
    store: StoreUrl = None,
    state_dir: StateDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """List certificates, tokens and CAs that have not expired.

    \b
    Examples:
      lutbuilder security list
      lutbuilder security list --all --json
      lutbuilder security list --coordinator lab:7070
    """
    with errors_shown(as_json=json_, debug=debug):
        with _opened(coordinator, state_dir, store, insecure_plaintext, needs_key=False) as opened:
            found = opened.inventory()
        certificates = [one for one in found.certificates if all_ or one.revoked_s is None]
        tokens = [one for one in found.tokens if all_ or (one.revoked_s is None and one.uses_left)]
        if json_:
            emit_json({"certificates": certificates, "tokens": tokens, "cas": found.cas})
            return
        _tables(found, certificates, tokens)


@app.command()
def revoke(
    name: Annotated[
        str, typer.Argument(help="Everyone of this name, and the tokens it knows.", show_default=False)
    ] = "",
    serial: Annotated[str, typer.Option(help="One certificate, by its serial number.", show_default=False)] = "",
    token: Annotated[
        str, typer.Option(metavar="ID", help="One token, by its first two groups.", show_default=False)
    ] = "",
    reason: Annotated[str, typer.Option(help="Why, for the list.", show_default=False)] = "",
    coordinator: Coordinator = None,
    insecure_plaintext: InsecurePlaintext = False,
    store: StoreUrl = None,
    state_dir: StateDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Trust a name, a certificate or a token no more, from the next call on.

    \b
    Examples:
      lutbuilder security revoke bench-pi --reason "phone lost"
      lutbuilder security revoke --token 7Q2M-K4TD
      lutbuilder security revoke --serial 5f0c2b
    """
    with errors_shown(as_json=json_, debug=debug):
        from lutbuilder_agent.wire.join_api import Revocation

        what = Revocation(name=name, serial=serial, token_id=token, reason=reason)
        with _opened(coordinator, state_dir, store, insecure_plaintext, needs_key=False) as opened:
            revoked = opened.revoke(what)
        if json_:
            emit_json(revoked)
        else:
            say(f"revoked {revoked.certificates} certificates and {revoked.tokens} tokens")


@app.command()
def rotate(
    overlap: Annotated[
        str, typer.Option(help="How long the old CA is trusted too; 0: not at all, and everyone joins again.")
    ] = "168h",
    coordinator: Coordinator = None,
    insecure_plaintext: InsecurePlaintext = False,
    store: StoreUrl = None,
    state_dir: StateDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Make a new CA. Whoever calls within the overlap moves to it by itself.

    \b
    Examples:
      lutbuilder security rotate
      lutbuilder security rotate --overlap 48h --coordinator lab:7070
      lutbuilder security rotate --overlap 0
    """
    with errors_shown(as_json=json_, debug=debug):
        overlap_s = duration_s(overlap, option="--overlap", zero=True)
        with _opened(coordinator, state_dir, store, insecure_plaintext, needs_key=False) as opened:
            rotated = opened.rotate(overlap_s)
        if json_:
            emit_json(rotated)
            return
        pairs("", [("new CA", f"sha256:{rotated.sha256}")])
        if overlap_s:
            say(
                f"the old one is trusted until {_moment(rotated.old_until_s)}; who calls until then moves by itself, "
                "who does not joins again"
            )
        else:
            say("the old one is trusted no more: everyone joins again; lutbuilder security token --uses N")


@app.command()
def join(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where joins are served.")],
    token: Annotated[str, typer.Option(help="The token, or - to read it from stdin.")],
    ca: Annotated[str, typer.Option(metavar="sha256:HEX", help="The CA's fingerprint.")],
    role: Annotated[str, typer.Option(help="The token's role: reader or admin.")] = "reader",
    name: Annotated[
        str, typer.Option(help="Your name in the certificate [default: user and host].", show_default=False)
    ] = "",
    coordinator: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Where its other calls go, if not to the same host [default: what it says itself].",
            show_default=False,
        ),
    ] = "",
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Get a certificate for the commands of this user: paste the line that `lutbuilder security token --role` printed.

    \b
    Examples:
      lutbuilder security join lab:7072 --role admin --token ABCD-EFGH-... --ca sha256:...
      lutbuilder security join lab:7072 --role reader --token - --ca sha256:... < token.txt
    """
    with errors_shown(as_json=json_, debug=debug):
        import sys

        from lutbuilder_agent import trust
        from lutbuilder_agent.errors import SpecError

        chosen = _role(role)
        if chosen == "agent":
            raise SpecError("an agent joins where it runs: lutbuilder-agent join HOST:PORT --token T --ca sha256:HEX")
        identity = trust.join(
            listen_address(address, option="HOST:PORT"),
            token=sys.stdin.readline() if token == "-" else token,
            ca=ca,
            name=name or _own_name(),
            role=chosen,
            coordinator=coordinator,
        )
        if json_:
            emit_json({"name": identity.name, "role": identity.role, "coordinator": identity.address})
        else:
            say(
                f"joined as {identity.name} ({identity.role}); next: lutbuilder agents --coordinator {identity.address}"
            )


def _opened(
    coordinator: str | None,
    state_dir: Path | None,
    store: str | None,
    insecure_plaintext: bool,
    *,
    needs_key: bool = True,
) -> AbstractContextManager[Security]:
    from lutbuilder.coordinator.trust.access import security

    address = None if coordinator is None else listen_address(coordinator, option="--coordinator")
    state, store_at = _places(state_dir, store)
    return security(
        state, store_at, coordinator=address, insecure_plaintext=insecure_plaintext, warn=say, needs_key=needs_key
    )


def _places(state_dir: Path | None, store: str | None) -> tuple[Path, str | Path]:
    """Return the state folder and where its store is."""
    from lutbuilder.campaign.state import default_state_folder, served_store

    return default_state_folder(state_dir), served_store(state_dir, store)


def _role(text: str) -> Role:
    from lutbuilder_agent.errors import unknown_name
    from lutbuilder_agent.wire.join_api import ROLES

    for role in ROLES:
        if text.strip().lower() == role:
            return role
    raise unknown_name("role", text, ROLES)


def _own_name() -> str:
    """Return the user's and the host's name, as a certificate may carry them."""
    import getpass
    import platform
    import re

    def plain(text: str) -> str:
        return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.") or "user"

    return f"{plain(getpass.getuser())[:31]}-{plain(platform.node().partition('.')[0])[:31]}".lstrip("._+-")


def _issued_data(issued: IssuedToken, line: str) -> dict[str, object]:
    return {
        "line": line,
        "token": issued.token,
        "token_id": issued.token_id,
        "role": issued.role,
        "ca": issued.ca,
        "join": issued.join_address,
        "ttl_s": issued.ttl_s,
    }


def _tables(found: Inventory, certificates: list[KnownCertificate], tokens: list[KnownToken]) -> None:
    now_s = time.time()
    signs = next((ca.sha256 for ca in found.cas if ca.until_s is None), "")
    columns = ["name", "role", "issued", "expires in", "CA", "serial", "state"]
    rows = [
        (
            one.name,
            one.role,
            f"{duration_text(max(0.0, now_s - one.issued_s))} ago",
            duration_text(max(0.0, one.expires_s - now_s)),
            "new" if one.ca_sha256 == signs else "old",
            one.serial,
            "good" if one.revoked_s is None else f"revoked: {one.reason or 'no reason given'}",
        )
        for one in certificates
    ]
    if rows:
        table("certificates", columns, rows)
    else:
        say("nobody has joined yet; get a line to paste: lutbuilder security token")
    if tokens:
        shown = [
            (
                f"{one.token_id[:4]}-{one.token_id[4:]}",
                one.role,
                one.name or "any",
                str(one.uses_left),
                duration_text(max(0.0, one.expires_s - now_s)),
                "good" if one.revoked_s is None else "revoked",
            )
            for one in tokens
        ]
        table("tokens", ["token", "role", "name", "joins left", "expires in", "state"], shown, right=["joins left"])
    for ca in found.cas:
        until = "signs" if ca.until_s is None else f"trusted for {duration_text(max(0.0, ca.until_s - now_s))} more"
        print(f"CA sha256:{ca.sha256} {until}")


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))

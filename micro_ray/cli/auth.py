"""auth, login, logout, user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from micro_ray.cli.arguments import pairs
from micro_ray.cli.exits import Usage
from micro_ray.cli.group import Subcommands
from micro_ray.cli.output import ago, as_json, columns, output
from micro_ray.cli.session import Session
from micro_ray.errors import Conflict, Unauthorized
from micro_ray.files import replace_file

__all__ = ["auth", "login", "logout", "user"]

_NAMESPACE = click.option("--namespace", help="Of this namespace (default: one's own).")


@click.command()
@click.option("--username", "--id", "id", help="Id or name of the account.")
@click.option("--password", "secret", help="Its secret; asked for when it is not given.")
@_NAMESPACE
@click.pass_obj
def login(session: Session, id: str | None, secret: str | None, namespace: str | None) -> None:
    """Log in: what you do from now on is done as that account."""
    id = id or click.prompt("Enter username", err=True)
    secret = secret or click.prompt("Enter password", hide_input=True, err=True)
    session.login(id, secret, namespace or session.settings.namespace)
    click.echo("Successfully logged in.")


@click.command()
@click.pass_obj
def logout(session: Session) -> None:
    """Forget who you are; the session ends."""
    session.logout()
    click.echo("Successfully logged out.")


@click.group(cls=Subcommands, invoke_without_command=True)
@output()
@click.pass_context
def user(ctx: click.Context) -> None:
    """Show who you are logged in as."""
    if ctx.invoked_subcommand is not None:
        return
    session: Session = ctx.obj
    known = session.identity()
    if session.output == "json":
        as_json(known)
    elif known is None:
        click.echo("You are not logged in.")
    else:
        click.echo(f"You are logged in as {known['id']} of {known['namespace']}.")


@user.command()
@click.pass_obj
def token(session: Session) -> None:
    """Print an access token: `curl -H "Authorization: Bearer $(micro user token)" ...`."""
    found = session.token()
    if not found:
        raise Unauthorized("client", "you are not logged in: micro login")
    click.echo(found)


@click.group(cls=Subcommands)
def auth() -> None:
    """Accounts, rules and keys."""


def _in(session: Session, namespace: str | None) -> str:
    return namespace or session.namespace


# -- list ------------------------------------------------------------------------------------------


@auth.group("list", cls=Subcommands)
def listing() -> None:
    """List accounts, rules or keys."""


@listing.command()
@_NAMESPACE
@output()
@click.pass_obj
def accounts(session: Session, namespace: str | None) -> None:
    """The accounts of a namespace."""
    rows = session.call("auth", "Accounts.List", {"namespace": _in(session, namespace)})
    if session.output == "json":
        as_json(rows)
        return
    columns(
        ("ID", "NAME", "TYPE", "SCOPES", "ENABLED", "CREATED", "METADATA"),
        [
            (
                row["id"],
                row["name"],
                row["kind"],
                ", ".join(row["scopes"]) or "n/a",
                "yes" if row["enabled"] else "no",
                ago(row["created"]),
                " ".join(f"{k}={v}" for k, v in row["metadata"].items()) or "n/a",
            )
            for row in rows
        ],
    )


@listing.command()
@_NAMESPACE
@output()
@click.pass_obj
def rules(session: Session, namespace: str | None) -> None:
    """The rules of a namespace, in the order in which they are tried."""
    rows = session.call("auth", "Rules.List", {"namespace": _in(session, namespace)})
    if session.output == "json":
        as_json(rows)
    else:
        columns(("ID", "SCOPE", "ACCESS", "RESOURCE", "PRIORITY"), [_rule(row) for row in rows])


def _rule(row: dict[str, Any]) -> tuple[Any, ...]:
    resource = ":".join(row["resource"][part] for part in ("type", "name", "endpoint"))
    scope = row["scope"] or "<public>"
    return row["id"], scope, row["access"].upper(), resource, row["priority"]


@listing.command()
@output()
@click.pass_obj
def keys(session: Session) -> None:
    """The keys that verify tokens."""
    rows = session.call("auth", "Auth.Keys", {})["details"]
    if session.output == "json":
        as_json(rows)
    else:
        columns(
            ("ID", "STATE", "CREATED"), [(r["id"], r["state"], ago(r["created"])) for r in rows]
        )


# -- create, delete, update ------------------------------------------------------------------------


@auth.group(cls=Subcommands)
def create() -> None:
    """Make an account or a rule."""


@create.command()
@click.argument("id")
@click.option("--secret", default="", help="Its secret (default: a random one, which is shown).")
@click.option("--scopes", default="", metavar="A,B", help="Its scopes.")
@click.option("--type", "kind", default="user", help="user, service or admin (default: user).")
@click.option("--name", default="", help="What one may log in with as well (default: the id).")
@click.option("--metadata", multiple=True, metavar="K=V", help="Something to be kept with it.")
@_NAMESPACE
@output()
@click.pass_obj
def account(
    session: Session,
    /,
    scopes: str,
    metadata: tuple[str, ...],
    namespace: str | None,
    **request: Any,
) -> None:
    """Make the account ID."""
    made = session.call(
        "auth",
        "Auth.Generate",
        {
            **request,
            "scopes": [scope for scope in scopes.split(",") if scope],
            "metadata": pairs(metadata, "--metadata"),
            "namespace": _in(session, namespace),
        },
    )
    if session.output == "json":
        as_json(made)
    else:
        click.echo(f"Account created: {made['account']['id']}")
        click.echo(f"Secret: {made['secret']}")


@create.command()
@click.argument("id")
@click.option(
    "--scope", default="", help="About whom: blank everybody, * any account, + any of any."
)
@click.option("--resource", required=True, metavar="TYPE:NAME:ENDPOINT", help="About what.")
@click.option("--access", default="granted", help="granted or denied (default: granted).")
@click.option("--priority", default=0, help="The highest is tried first (default: 0).")
@_NAMESPACE
@click.pass_obj
def rule(
    session: Session, /, resource: str, access: str, namespace: str | None, **rest: Any
) -> None:
    """Make the rule ID."""
    if access not in ("granted", "denied"):
        raise Usage("cli", f"Invalid access: {access}, must be granted or denied")
    request = {"resource": _resource(resource), "access": access, **rest}
    session.call("auth", "Rules.Create", {**request, "namespace": _in(session, namespace)})
    click.echo("Rule created")


def _resource(text: str) -> dict[str, str]:
    parts = text.split(":")
    if len(parts) != 3:
        raise Usage("cli", "Invalid resource, must be in the format type:name:endpoint")
    return dict(zip(("type", "name", "endpoint"), parts, strict=True))


@auth.group(cls=Subcommands)
def delete() -> None:
    """Delete an account or a rule."""


@delete.command("account")
@click.argument("id")
@_NAMESPACE
@click.pass_obj
def delete_account(session: Session, id: str, namespace: str | None) -> None:
    """Delete the account ID; its tokens are void."""
    session.call("auth", "Accounts.Delete", {"id": id, "namespace": _in(session, namespace)})


@delete.command("rule")
@click.argument("id")
@_NAMESPACE
@click.pass_obj
def delete_rule(session: Session, id: str, namespace: str | None) -> None:
    """Delete the rule ID."""
    session.call("auth", "Rules.Delete", {"id": id, "namespace": _in(session, namespace)})
    click.echo("Rule deleted")


@auth.group(cls=Subcommands)
def update() -> None:
    """Change a secret, or enable or disable an account."""


@update.command("secret")
@click.argument("id")
@click.option("--old_secret", "--old-secret", "old", default="", help="The one it has; one's own.")
@click.option("--new_secret", "--new-secret", "new", default="", help="Default: a random one.")
@_NAMESPACE
@click.pass_obj
def secret(session: Session, id: str, old: str, new: str, namespace: str | None) -> None:
    """Change the secret of the account ID; its tokens are void."""
    request = {"id": id, "old_secret": old, "new_secret": new}
    done = session.call(
        "auth", "Accounts.ChangeSecret", {**request, "namespace": _in(session, namespace)}
    )
    click.echo("Secret changed" if new else f"Secret: {done['secret']}")


@update.command("account")
@click.argument("id")
@click.option("--enable/--disable", "enabled", required=True, help="Whether it may log in.")
@_NAMESPACE
@click.pass_obj
def enable(session: Session, id: str, enabled: bool, namespace: str | None) -> None:
    """Let the account ID log in, or not."""
    request = {"id": id, "enabled": enabled, "namespace": _in(session, namespace)}
    session.call("auth", "Accounts.Enable", request)
    click.echo(f"Account {'enabled' if enabled else 'disabled'}")


@auth.command()
@click.argument("resource", metavar="TYPE:NAME:ENDPOINT")
@click.option("--account", default="", help="Whether this one may (default: nobody in particular).")
@_NAMESPACE
@output()
@click.pass_obj
def explain(session: Session, resource: str, account: str, namespace: str | None) -> None:
    """Say whether an account may call something, and which rule decides."""
    request = {"resource": _resource(resource), "account": account}
    said = session.call("auth", "Rules.Explain", {**request, "namespace": _in(session, namespace)})
    if session.output == "json":
        as_json(said)
        return
    click.echo(f"{'allowed' if said['allowed'] else 'refused'}: {said['why']}")
    if said["rule"]:
        columns(("ID", "SCOPE", "ACCESS", "RESOURCE", "PRIORITY"), [_rule(said["rule"])])


@auth.command()
@click.option("--token", default="", help="An access or refresh token, or the id of one.")
@click.option("--account", default="", help="All tokens of an account.")
@_NAMESPACE
@click.pass_obj
def revoke(session: Session, token: str, account: str, namespace: str | None) -> None:
    """Make void a token, or all of an account."""
    request = {"token": token, "account": account, "namespace": _in(session, namespace)}
    session.call("auth", "Auth.Revoke", request)
    click.echo("Revoked")


@auth.command()
@click.argument("folder", type=click.Path(path_type=Path))
@output()
@click.pass_obj
def nats(session: Session, folder: Path) -> None:
    """Make the key by which NATS is told which namespace may do what.

    FOLDER gets nats.conf, to be included by the configuration of all servers, and account.key, for
    broker.account_key and events.account_key. Who has that file may do anything with the platform's
    messages and events.
    """
    from micro_ray.nats_users import Key, configuration

    key = Key.make("A")
    files = {"account.key": f"{key.seed}\n", "nats.conf": configuration(key)}
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in files:
        if (folder / name).exists():
            raise Conflict("cli", f"{folder / name} already exists")
    for name, text in files.items():
        replace_file(folder / name, text.encode())
    if session.output == "json":
        as_json({"account": key.id, "files": [str(folder / name) for name in files]})
        return
    for name in files:
        click.echo(folder / name)


@auth.command()
@click.pass_obj
def rotate(session: Session) -> None:
    """Sign tokens with the next key from now on."""
    session.call("auth", "Auth.Rotate", {})
    click.echo("Key rotated")

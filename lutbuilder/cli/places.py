"""Where a command about a fleet finds it: a coordinator by its address, or the campaign store of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lutbuilder.cli.console import say
from lutbuilder.cli.values import listen_address, whole

if TYPE_CHECKING:
    from lutbuilder.control.api import ControlApi
    from lutbuilder.control.client import ControlClient
    from lutbuilder.control.remote import Remote
    from lutbuilder.urls import Place as LutsPlace

Coordinator = Annotated[
    str | None,
    typer.Option(
        "--coordinator",
        metavar="HOST:PORT",
        help="Ask this coordinator (lutbuilder serve) [default: the store of this machine].",
        show_default=False,
    ),
]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="The store itself, postgresql://USER@HOST/DB [default: $LUTBUILDER_STORE or a file of --state-dir].",
        show_default=False,
    ),
]
InsecurePlaintext = Annotated[
    bool,
    typer.Option(
        "--insecure-plaintext", help="Speak without TLS off this machine: anyone on the way reads and alters."
    ),
]


ByCoordinator = Annotated[
    str | None,
    typer.Option(
        "--coordinator",
        metavar="HOST:PORT",
        help="Have this coordinator (lutbuilder serve) do it with its agents [default: do it here].",
        show_default=False,
    ),
]
Priority = Annotated[
    int, typer.Option(help="With --coordinator: higher goes first, from -1000 to 1000.", show_default=False)
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A fleet. `api` is None where there is no store yet: looking must not make one."""

    api: ControlApi | None
    where: str

    @property
    def known(self) -> ControlApi:
        """Return the calls; raise UnknownName where there is nothing to change."""
        if self.api is None:
            from lutbuilder_agent.errors import UnknownName

            raise UnknownName(
                f"there is no store at {self.where}: name another, --state-dir DIR, or --coordinator HOST:PORT"
            )
        return self.api


@contextmanager
def place(
    coordinator: str | None, *, store: str | None, state_dir: Path | None, insecure_plaintext: bool
) -> Iterator[Place]:
    """Reach a fleet. Raises SpecError for options that exclude each other, Unreachable, StoreError."""
    from lutbuilder_agent.errors import SpecError

    if coordinator is not None:
        if store is not None or state_dir is not None:
            raise SpecError("--coordinator asks a coordinator: leave out --store and --state-dir, which are its own")
        with dialled(coordinator, insecure_plaintext=insecure_plaintext) as client:
            yield Place(api=client, where=client.address)
        return
    from lutbuilder.campaign.state import served_store

    at = served_store(state_dir, store)
    if isinstance(at, Path) and not at.exists():
        yield Place(api=None, where=str(at))
        return
    from lutbuilder.control.control import Control
    from lutbuilder.coordinator.store import Store

    with Store.open(at) as opened:
        yield Place(api=Control(opened), where=opened.where)


def dialled(coordinator: str, *, insecure_plaintext: bool) -> ControlClient:
    """Return a client of a coordinator for this user."""
    from lutbuilder.control.client import dial

    address = listen_address(coordinator, option="--coordinator")
    return dial(address, insecure_plaintext=insecure_plaintext, warn=say)


@contextmanager
def remotely(
    coordinator: str,
    *,
    luts: LutsPlace,
    priority: int,
    insecure_plaintext: bool,
    listen: str | None = None,
    state_dir: Path | None = None,
) -> Iterator[Remote]:
    """Reach a coordinator that does a command's work. Raises SpecError for options that are its own business."""
    import getpass
    import platform

    from lutbuilder.control.remote import Remote
    from lutbuilder_agent.errors import SpecError

    if listen is not None or state_dir is not None:
        raise SpecError(
            "--listen and --state-dir are the coordinator's own business: leave them out with --coordinator"
        )
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "somebody"
    with dialled(coordinator, insecure_plaintext=insecure_plaintext) as client:
        yield Remote(
            api=client,
            address=client.address,
            luts=luts,
            priority=whole(priority, option="--priority", least=-1000, most=1000),
            owner=f"{user}@{platform.node()}"[:256],
        )


def check_alone(priority: int, insecure_plaintext: bool) -> None:
    """Raise SpecError for options that mean nothing without a coordinator."""
    from lutbuilder_agent.errors import SpecError

    if priority or insecure_plaintext:
        raise SpecError("--priority and --insecure-plaintext go with --coordinator HOST:PORT")


def check_behind(context: typer.Context) -> bool:
    """Return whether a subcommand follows; options in front of it would be for the list, so they are refused."""
    if context.invoked_subcommand is None:
        return False
    given = [name for name in context.params if _given(context, name)]
    if given:
        words = f"{context.info_name} {context.invoked_subcommand}"
        raise typer.BadParameter(
            f"options go behind the word: lutbuilder {words} ... --{given[0].replace('_', '-').strip('-')}"
        )
    return True


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"

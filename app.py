"""Plumb's web process: settings → data folder → migrate → supervisor → pages → serve. No torch in here."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.settings import Settings, load_settings
from jobs.telemetry import switch_off
from storage.database import migrate
from storage.errors import PlumbError, UserError
from storage.facts_keeper import keep_up
from storage.occupants import enter

if TYPE_CHECKING:
    from workbench.door import Door

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@cli.command()
def main(
    data: Annotated[str | None, typer.Option(help="The data folder.", envvar="PLUMB_DATA")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", envvar="PLUMB_HOST")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0: any that is free.", envvar="PLUMB_PORT")] = None,
    devices: Annotated[
        str | None, typer.Option(help="Device slots, as cpu or cuda:0,cuda:1.", envvar="PLUMB_DEVICES")
    ] = None,
) -> None:
    """Serve the workbench."""
    try:
        settings = load_settings(data=data, host=host, port=port, devices=devices)
        serve(settings)
    except PlumbError as error:
        typer.echo(f"plumb: {error}", err=True)
        raise typer.Exit(1) from None


def serve(settings: Settings) -> None:
    """Serve until interrupted.

    Raises:
        PlumbError: the port is taken, the folder cannot be written, is being restored or repaired, the database is
            locked or too new.
    """
    listener = bind(settings)  # first: the commonest error should not wait for anything
    folder = settings.folder.create()
    enter(folder)  # until the end: nobody restores into it, or repairs it, from now on
    migrate(folder)

    switch_off(os.environ)
    os.environ.setdefault("GRADIO_TEMP_DIR", str(folder.runtime / "gradio"))

    import uvicorn

    from jobs.standby import start_supervisor, watch_over
    from workbench.context import Context
    from workbench.door import Door
    from workbench.ui import build_ui

    doorkeeper = Door(settings)
    app = build_ui(Context(settings), doorkeeper)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",  # Gradio streams over plain HTTP
        timeout_graceful_shutdown=3,
    )
    begun = start_supervisor(settings, fresh=True)  # last: its own start shall not slow the first page's
    watch_over(settings, begun=begun)
    keep_up(folder)
    announce(settings, doorkeeper, listener.getsockname()[1])
    uvicorn.Server(config).run(sockets=[listener])


def bind(settings: Settings) -> socket.socket:
    """A listening socket; whoever connects before the pages are ready waits instead of being refused.

    Raises:
        UserError: the port is in use, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno in (48, 98, 10048):  # EADDRINUSE on macOS, Linux, Windows
            raise UserError(
                f"Port {settings.port} on {settings.host} is in use. Another Plumb may be running; "
                f"end it, or choose another port with --port {settings.port + 1}."
            ) from error
        raise UserError(
            f"Cannot listen on {settings.host}:{settings.port} ({error.strerror or error}). "
            "Choose another address with --host or another port with --port."
        ) from error
    except OverflowError as error:
        listener.close()
        raise UserError(f"Port {settings.port}: give a number from 0 to 65535 with --port.") from error
    return listener


def announce(settings: Settings, doorkeeper: Door, port: int) -> None:
    """Print where the app is; off loopback with the token of this start."""
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    if doorkeeper.loopback:
        typer.echo(f"Plumb: http://{name}:{port}")
    else:
        shown = socket.gethostname() if settings.host in ("0.0.0.0", "::") else name
        typer.echo(f"Plumb: http://{shown}:{port}/login?token={doorkeeper.token}")
        typer.echo("Whoever has this address is admin; the token is valid until Plumb is restarted.")
        typer.echo("Others log in by name and password: python -m storage users add NAME --role ROLE")
    typer.echo(f"Data: {settings.folder.root}")
    sys.stdout.flush()


if __name__ == "__main__":
    cli()

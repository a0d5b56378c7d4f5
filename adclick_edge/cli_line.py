"""The verbs of the line: daemon, cameras, and what people ask the daemon that runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["line_app"]

line_app = typer.Typer(no_args_is_help=True, add_completion=False)
keys_app = typer.Typer(no_args_is_help=True, help="CURVE keys: who may connect from other hosts.")
line_app.add_typer(keys_app, name="keys")

LineFile = Annotated[Path, typer.Argument(metavar="LINE_TOML", help="The line's configuration.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
KeysFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the keys.")]


@line_app.command()
def serve(
    line_file: LineFile,
    json_logs: Annotated[
        bool | None, typer.Option("--json-logs/--plain-logs", help="Default: JSON unless on a terminal.")
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Write a commented LINE_TOML to start from, and end.")
    ] = False,
) -> None:
    """The inspection daemon: every trigger of every camera gets one verdict by its deadline."""
    from adclick_edge.commands.serve import run, write_example

    if example:
        write_example(line_file)
    else:
        run(line_file, json_logs)


@line_app.command()
def camera(
    endpoint: Annotated[str, typer.Argument(help="What the daemon binds: ipc://... or tcp://HOST:PORT.")],
    name: Annotated[str, typer.Option(help="The camera's name in line.toml.")],
    folder: Annotated[Path | None, typer.Option(help="Replay the images of a folder and those below it.")] = None,
    video: Annotated[Path | None, typer.Option(help="Replay a video file.")] = None,
    usb: Annotated[int | None, typer.Option(min=0, help="A USB camera, by number.")] = None,
    rtsp: Annotated[str | None, typer.Option(help="A network camera, by URL.")] = None,
    genicam: Annotated[Path | None, typer.Option(help="A GenICam camera, by its producer's .cti file.")] = None,
    serial: Annotated[str | None, typer.Option(help="Serial number of the GenICam camera.")] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Triggers per second; default: 10 for folders, a video's own.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many triggers.")] = None,
    loop: Annotated[bool, typer.Option(help="Begin again at the end.")] = False,
    encoded: Annotated[bool, typer.Option(help="Send the files' own JPEG or PNG bytes.")] = False,
    transport: Annotated[
        Literal["auto", "message", "ring"], typer.Option(help="ring: shared memory on the daemon's host.")
    ] = "auto",
    deadline_ms: Annotated[float | None, typer.Option(min=1, help="Default: line.toml's.")] = None,
    code: Annotated[str | None, typer.Option(help="Code that chooses the product.")] = None,
    keys: Annotated[
        Path | None, typer.Option(help="Folder with this camera's keys and the daemon's public one.")
    ] = None,
    stall_s: Annotated[
        float, typer.Option(min=0, help="A device silent for so long is restarted; 0: never, GenICam only.")
    ] = 2.0,
    json_output: Json = False,
) -> None:
    """A camera: sends frames of a folder, a video or a device, prints the verdicts."""
    from adclick_edge.commands.camera import run

    run(
        endpoint,
        name,
        folder=folder,
        video=video,
        usb=usb,
        rtsp=rtsp,
        genicam=genicam,
        serial=serial,
        rate=rate,
        count=count,
        loop=loop,
        encoded=encoded,
        transport=transport,
        deadline_ms=deadline_ms,
        code=code,
        keys=keys,
        stall_s=stall_s,
        json_output=json_output,
    )


@line_app.command()
def top(
    line_file: Annotated[Path | None, typer.Argument(metavar="LINE_TOML", help="The line's configuration.")] = None,
    monitor: Annotated[str | None, typer.Option(help="The daemon's monitor endpoint.")] = None,
    http: Annotated[str | None, typer.Option(help="The daemon's HTTP address.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Print one snapshot.")] = False,
    json_output: Json = False,
) -> None:
    """The line, live in the terminal."""
    from adclick_edge.commands.top import run

    run(line_file, monitor, http, once, json_output)


@line_app.command()
def status(line_file: LineFile, json_output: Json = False) -> None:
    """What the running daemon counts."""
    from adclick_edge.commands.control import run_status

    run_status(line_file, json_output)


@line_app.command()
def swap(
    line_file: LineFile,
    product: Annotated[str, typer.Argument()],
    bundle: Annotated[Path, typer.Argument(help="The bundle to serve from now on.")],
    force: Annotated[bool, typer.Option("--force", help="Even without thresholds: every frame is uncertain.")] = False,
) -> None:
    """Serve another bundle, checked and warmed up first, without stopping the line."""
    from adclick_edge.commands.control import run_swap

    run_swap(line_file, product, bundle, force)


@line_app.command()
def rollback(line_file: LineFile, product: Annotated[str, typer.Argument()]) -> None:
    """Serve the bundle that served before."""
    from adclick_edge.commands.control import run_rollback

    run_rollback(line_file, product)


@line_app.command()
def shadow(
    line_file: LineFile,
    product: Annotated[str, typer.Argument()],
    bundle: Annotated[Path | None, typer.Argument(metavar="BUNDLE", help="The candidate; without one it ends.")] = None,
) -> None:
    """Let a candidate judge too, unheard; its differences are counted."""
    from adclick_edge.commands.control import run_shadow

    run_shadow(line_file, product, bundle)


@line_app.command()
def reload(line_file: LineFile) -> None:
    """Take over changed thresholds and regions at once; the daemon looks every second anyway."""
    from adclick_edge.commands.control import run_reload

    run_reload(line_file)


@line_app.command("shift")
def shift_report(
    line_file: LineFile,
    out: Annotated[Path | None, typer.Option(help="Write the report: .html or .json.")] = None,
    json_output: Json = False,
) -> None:
    """The running shift's figures."""
    from adclick_edge.commands.shift import run

    run(line_file, out, json_output)


@keys_app.command("new")
def keys_new(
    folder: KeysFolder,
    camera: Annotated[str | None, typer.Option(help="For this camera; default: for the daemon.")] = None,
    json_output: Json = False,
) -> None:
    """Make a key pair."""
    from adclick_edge.commands.keys import run_new

    run_new(folder, camera, json_output)


@keys_app.command("allow")
def keys_allow(
    folder: KeysFolder,
    camera: Annotated[str, typer.Argument()],
    key: Annotated[str, typer.Argument(metavar="KEY_OR_FILE", help="The camera's public key.")],
) -> None:
    """Let a camera in."""
    from adclick_edge.commands.keys import run_allow

    run_allow(folder, camera, key)


@keys_app.command("list")
def keys_list(folder: KeysFolder, json_output: Json = False) -> None:
    """Who is allowed."""
    from adclick_edge.commands.keys import run_list

    run_list(folder, json_output)


@keys_app.command("revoke")
def keys_revoke(
    folder: KeysFolder,
    camera: Annotated[str, typer.Argument()],
    key: Annotated[str | None, typer.Argument(metavar="KEY_OR_FILE", help="Default: all of the camera's.")] = None,
) -> None:
    """Let a camera in no more."""
    from adclick_edge.commands.keys import run_revoke

    run_revoke(folder, camera, key)

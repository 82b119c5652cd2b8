"""The command line: `iotsim demo`, `dashboard`, `notebooks`, `verify`, `profiles`, `scenario`.

Exit status: 0 if all is well, 1 if it is not (one line says why), 2 for a wrong command line, 130
after an interrupt.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from iotsim import __version__
from iotsim.errors import IotsimError

INTERRUPTED = 130


def say(text: str = "") -> None:
    """Print one line at once, so that it also shows where nobody has a terminal."""
    print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    more: list[str] = []
    if given[:1] == ["notebooks"] and "--" in given:
        cut = given.index("--")
        given, more = given[:cut], given[cut + 1 :]
    arguments = _parser().parse_args(given)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")  # a terminal without × and – shows ? instead
    try:
        return _run(arguments, more)
    except IotsimError as error:
        print(f"iotsim: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("iotsim: interrupted; everything it started has ended", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `iotsim … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="iotsim", description="Simulate fleets of IoT devices; replay them byte for byte."
    )
    parser.add_argument("--version", action="version", version=f"iotsim {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_demo(commands)
    _add_dashboard(commands)
    book = commands.add_parser(
        "notebooks", help="open JupyterLab on the notebooks",
        usage="iotsim notebooks [-h] [--folder PATH] [--no-browser] [-- arguments of JupyterLab]",
    )
    book.add_argument("--folder", type=Path, metavar="PATH",
                      help="a copy of yours; existing files are kept")
    book.add_argument("--no-browser", action="store_true", help="do not open a browser")
    check = commands.add_parser("verify", help="run a saved run again and compare every byte")
    check.add_argument("path", type=Path, help="a file of result.save(path)")
    check.add_argument("--against", type=Path, metavar="FILE",
                       help="a Parquet file of the readings, to name what differs exactly")
    commands.add_parser("profiles", help="list the profiles that come with iotsim")
    _add_scenario(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    show = commands.add_parser(
        "demo", help="a fleet live over a real broker: audited, saved, replayed",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    show.add_argument("--seconds", type=float, default=10.0, help="how long it is live")
    show.add_argument("--devices", type=int, default=1000, help="how many devices")
    show.add_argument("--folder", type=Path, default=Path("iotsim-demo"), metavar="PATH",
                      help="what is left; a numbered one beside it if it is in use")
    show.add_argument("--seed", type=int, default=42, help="another seed, other readings")
    show.add_argument("--broker", choices=("auto", "mosquitto", "embedded"), default="auto",
                      help="auto is mosquitto where there is one")


def _add_dashboard(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    page = commands.add_parser("dashboard", help="a live fleet as a web page, on this machine",
                               description="Serve a live fleet as a web page on this machine. "
                               "Each page that is opened has a run of its own, which ends with it.")
    page.add_argument("scenario", nargs="?", metavar="FILE_OR_NAME",
                      help="a scenario: a Python file, or the name of one that comes with iotsim")
    page.add_argument("--profile", metavar="NAME", help="instead, devices of a profile")
    page.add_argument("--devices", type=int, metavar="N", help="how many of them (100)")
    page.add_argument("--publish", metavar="URL", default=os.environ.get("IOTSIM_PUBLISH"),
                      help="where readings go, such as mqtt://localhost:1883; with a password "
                           "better as IOTSIM_PUBLISH in the environment, which nobody else sees; "
                           "then one page is served at a time")
    page.add_argument("--speed", help="simulated seconds per second, or max")
    page.add_argument("--port", type=int, default=0, help="a free one if not given")
    page.add_argument("--theme", choices=("light", "dark"), default="light")
    page.add_argument("--no-browser", action="store_true", help="do not open a browser")


def _add_scenario(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    group = commands.add_parser("scenario", help="run what happens to a fleet, as a test")
    kinds = group.add_subparsers(dest="scenario", required=True, metavar="what")
    kinds.add_parser("list", help="list the scenarios that come with iotsim")
    play = kinds.add_parser("run", help="run one; exit status 1 if it expected something else")
    play.add_argument("source", metavar="FILE_OR_NAME", help="a Python file, which is run, or the "
                                                             "name of one that comes with iotsim")
    play.add_argument("--speed", default="1", help="simulated seconds per second, or max")
    play.add_argument("--seed", type=int, help="another seed, other readings")
    play.add_argument("--offline", action="store_true",
                      help="as fast as the machine computes, without a broker")
    play.add_argument("--publish", metavar="URL", help="where readings go, such as "
                                                       "mqtt://localhost:1883")
    play.add_argument("--save", type=Path, metavar="FILE", help="a file for iotsim verify")
    play.add_argument("--to", type=Path, metavar="FILE", help="a Parquet file of all readings")
    play.add_argument("--junit", type=Path, metavar="FILE", help="a report for a CI system")


def _run(arguments: argparse.Namespace, more: Sequence[str]) -> int:
    if arguments.command == "demo":
        return _demo(arguments)
    if arguments.command == "dashboard":
        return _dashboard(arguments)
    if arguments.command == "notebooks":
        from iotsim.notebooks import notebooks

        return notebooks(arguments.folder, more, say, browser=not arguments.no_browser)
    if arguments.command == "verify":
        return _verify(arguments.path, arguments.against)
    if arguments.command == "scenario":
        from iotsim.scenario_command import listed, played

        return listed(say) if arguments.scenario == "list" else played(arguments, say)
    return _profiles()


def _demo(arguments: argparse.Namespace) -> int:
    from iotsim.demo import demo, plan_of
    from iotsim.errors import BadValue
    from iotsim.seeding import check_seed

    try:
        plan = plan_of(devices=arguments.devices, seconds=arguments.seconds,
                       seed=check_seed(arguments.seed), folder=arguments.folder,
                       broker=arguments.broker)
    except BadValue as error:
        print(f"iotsim demo: error: {error}", file=sys.stderr)
        return 2
    _end_gracefully_when_told()
    return demo(plan, say)


def _dashboard(arguments: argparse.Namespace) -> int:
    from iotsim.dashboard import Asked
    from iotsim.dashboard.command import dashboard
    from iotsim.scenario_command import speed_of

    _end_gracefully_when_told()
    wanted = Asked(arguments.scenario, arguments.profile, arguments.devices, arguments.publish,
                   None if arguments.speed is None else speed_of(arguments.speed), os.getcwd())
    return dashboard(wanted, say, port=arguments.port, theme=arguments.theme,
                     browser=not arguments.no_browser)


def _end_gracefully_when_told() -> None:
    # Signals end it as Ctrl-C does: asyncio cancels what runs, but only with this handler of
    # SIGINT, and whoever starts us in the background may have left SIGINT ignored. SIGHUP that
    # is ignored stays so: that is what nohup is for.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and (name == "SIGTERM" or signal.getsignal(number) != signal.SIG_IGN):
            signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))


def _verify(path: Path, against: Path | None) -> int:
    from iotsim.verification import verify

    found = verify(path, against=against)
    say(f"identical, digest {found.digest}" if found.ok else f"different: {found.difference}")
    return 0 if found.ok else 1


def _profiles() -> int:
    from iotsim.profiles import Profile
    from iotsim.units import duration_text

    names = Profile.names()
    width = max(len(name) for name in names)
    for name in names:
        profile = Profile.load(name)
        fields = ", ".join(
            f"{field.name} ({field.unit})" if field.unit else field.name
            for field in profile.fields
        )
        say(f"{name:<{width}}  every {duration_text(profile.interval_us):<4}  {fields}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m zoo COMMAND``: finds the command, and imports only what that command needs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from zoo import registry
from zoo.cli.quiet import without_notices
from zoo.core.files import FULL, full_disk
from zoo.core.text import nearest
from zoo.core.version import __version__
from zoo.errors import UserError


def usage() -> str:
    lines = [
        f"zoo {__version__}: reference architectures whose regularization is right",
        "",
        "usage: python -m zoo COMMAND [options]",
        "",
    ]
    lines += [f"  {name:<12} {entry.help}" for name, entry in registry.COMMANDS.items()]
    lines += ["", "python -m zoo COMMAND --help shows a command's options."]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit code, 2 for anything wrong with the input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    command = arguments[0]
    try:
        if command not in registry.COMMANDS:
            raise UserError(
                f"no command named {command!r}{nearest(command, registry.COMMANDS)} "
                "(python -m zoo --help shows them all)"
            )
        run = registry.load(registry.COMMANDS[command].run)
        with without_notices():
            return int(run(arguments[1:]))
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:  # where nothing else says what it leaves
        print(f"\nzoo {command}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `zoo list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or error
        if error.errno in FULL:
            reason = full_disk(Path(error.filename or "."))
        message = str(UserError(f"{where}{reason}"))
    print(f"zoo {command}: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

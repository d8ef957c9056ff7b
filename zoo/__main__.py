"""``python -m zoo COMMAND``: finds the command, and imports only what that command needs."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from zoo import __version__
from zoo.errors import UserError
from zoo.recipes import nearest

# command -> (module with main(arguments) -> exit code, what it does)
COMMANDS = {
    "fit": ("zoo.cli", "train a recipe: python -m zoo fit --recipe resnet_fmnist"),
    "validate": ("zoo.cli", "measure on the validation images"),
    "test": ("zoo.cli", "measure on the test images"),
    "predict": ("zoo.cli", "write class probabilities of the test images"),
    "audit": ("zoo.commands.audit", "check where normalisation and dropout stand, in any model"),
    "uncertainty": ("zoo.commands.uncertainty", "what trained weights do not know, and how well"),
    "sample": ("zoo.commands.sample", "what a generative model makes: text, or a grid of images"),
    "list": ("zoo.commands.list", "show the recipes, and which ship weights"),
    "publish": ("zoo.commands.publish", "turn a finished run into a shipped checkpoint"),
    "verify": ("zoo.commands.verify", "check shipped checkpoints: checksums, golden outputs"),
}


def usage() -> str:
    lines = [
        f"zoo {__version__}: reference architectures whose regularisation is right",
        "",
        "usage: python -m zoo COMMAND [options]",
        "",
    ]
    lines += [f"  {name:<10} {about}" for name, (_, about) in COMMANDS.items()]
    lines += ["", "python -m zoo COMMAND --help tells a command's options."]
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
        if command not in COMMANDS:
            raise UserError(
                f"no command named {command!r}{nearest(command, COMMANDS)} "
                "(python -m zoo --help shows them all)"
            )
        module = import_module(COMMANDS[command][0])
        return int(module.main(arguments if module.__name__ == "zoo.cli" else arguments[1:]))
    except UserError as error:
        message = " ".join(str(error).split())
    except BrokenPipeError:  # `zoo list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        message = f"{where}{error.strerror or error}"
    print(f"zoo {command}: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

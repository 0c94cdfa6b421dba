"""hf-select: one subcommand a file, one dataclass a subcommand. Flags, YAML keys and dataclass fields are the same
names.
"""

import argparse
import logging
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING
from typing import Any

from hf_select._version import __version__
from hf_select.cli.commands import _COMMANDS, COMMANDS, make_command
from hf_select.cli.settings import add_flags, descriptions, nearest, settable, suggest


# What the operating system says of a path, in words.
_OF_FILES: dict[type, str] = {
    FileNotFoundError: "does not exist",
    FileExistsError: "is a file, and a folder is needed",
    NotADirectoryError: "lies below a file, and a folder is needed; choose another path",
    IsADirectoryError: "is a folder, and a file is needed",
    PermissionError: "cannot be read or written: permission denied",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors are one line, with exit code 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        command, values = _parse(argv)
        _own_bars_only()
        with _messages_above_bars():
            next_step = make_command(command, values).run()
        if next_step:
            print(f"Next: {next_step}")
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nhf-select: stopped. The same command resumes what can be resumed.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, head or less, has left; Python would complain once more at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if os.environ.get("HF_SELECT_TRACEBACK"):
            raise
        print(f"hf-select: error: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _own_bars_only() -> None:
    """Our bars say what is scored; those of reading and writing files only push them off the screen."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def _messages_above_bars() -> Iterator[None]:
    """Warnings and log messages get lines of their own, above a progress bar and not behind it."""
    from tqdm.auto import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    libraries = [logging.getLogger(name) for name in ("transformers", "datasets", "huggingface_hub")]
    loggers = [logging.root, *(logger for logger in libraries if logger.handlers)]
    logging.captureWarnings(True)
    try:
        with logging_redirect_tqdm(loggers, tqdm_class=tqdm):
            yield
    finally:
        logging.captureWarnings(False)


def _parse(argv: list[str]) -> tuple[str, dict[str, Any]]:
    """(command, its settings by name)."""
    listed = [name for name in _COMMANDS if not name.startswith("demo-")]
    if not argv or argv[0].startswith("-") or argv[0] == "help":
        top = _Parser(
            "hf-select",
            usage="hf-select COMMAND ...",
            description="Score, select and train on instruction data.\n\ncommands:\n"
            + "\n".join(f"  {name:<20}{_COMMANDS[name][1]}" for name in listed),
            epilog="hf-select COMMAND --help shows its settings.\n"
            "Start here: hf-select run quickstart   (offline, on a CPU, two minutes)",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        top.add_argument("--version", action="version", version=__version__)
        top.parse_args(["--help"] if not argv or argv[0] == "help" else argv)
        raise ValueError(f'"{argv[0]}" comes before the command. See hf-select --help.')
    if argv[0] in ("score", "index") and "--status" in argv:
        argv = ["status", *(word for word in argv[1:] if word != "--status")]
    if argv[0] in ("train", "generate") and len(argv) > 1 and not argv[1].startswith("-"):
        argv = [argv[0], "--method", *argv[1:]]
    if argv[0] == "mix" and len(argv) > 1 and not argv[1].startswith("-"):
        argv = ["mix", "--mixture", *argv[1:]]
    name, *rest = argv
    if name not in COMMANDS:
        raise suggest("command", name, listed, otherwise="See hf-select --help.")
    cls = COMMANDS[name]()
    asked = _peek(rest)
    if not {"-h", "--help"} & set(rest):
        _need_choice(name, cls, asked)
    about = _recipe_help(rest) if name == "run" else None
    parser = _Parser(
        prog=f"hf-select {name}",
        description=about or (cls.__doc__ or "").split("\n\n")[0],
        epilog=None if about else _epilog(name, cls),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if name == "run":
        parser.add_argument("recipe", help="name of a recipe, or the path of a YAML file")
        parser.add_argument("overrides", nargs="*", metavar="step.setting=value", help="in place of the recipe's own")
        add_flags(parser, cls, "settings", skip=("recipe", "overrides"))
        if not rest:
            raise ValueError("hf-select run needs a recipe, e.g. quickstart. hf-select run --help lists them.")
        return name, vars(parser.parse_intermixed_args(rest))
    positional = getattr(cls, "positional", None)
    if positional:
        parser.add_argument(positional, metavar=positional.upper(), help=descriptions(cls)[positional])
    for part in cls.parts(asked):
        add_flags(parser, part, f"settings of {part.__name__}", skip=[f.name for f in settable(cls)] + parser.taken())
    add_flags(parser, cls, "settings", skip=[positional] if positional else [])
    return name, vars(parser.parse_args(rest))


class _Parser(argparse.ArgumentParser):
    def taken(self) -> list[str]:
        return [action.dest for action in self._actions]

    def error(self, message: str):  # noqa: ANN201
        """One line with the nearest flags, in place of the whole usage."""
        what, _, words = message.partition(": ")
        if what != "unrecognized arguments":
            raise ValueError(f"{message}. See {self.prog} --help.")
        flag = next((word.partition("=")[0] for word in words.split() if word.startswith("--")), None)
        if flag is None:
            raise ValueError(f'"{words}" belongs to no flag. See {self.prog} --help.')
        if flag[2:].replace("-", "_") in self.taken():  # a setting, and yet no flag
            raise ValueError(f"{flag} is given without its name: {self.prog} {flag[2:].upper()}.")
        flags = [option for action in self._actions for option in action.option_strings if option[:2] == "--"]
        near = nearest(flag, flags)
        if "--args" in flags:
            hint = f" Did you mean {' or '.join(near)}?" if near not in ([], ["--args"]) else ""
            raise ValueError(
                f'unknown flag "{flag}".{hint} A setting of the trainer goes into --args: --args '
                f"{_setting(flag)}=VALUE."
            )
        raise suggest("flag", flag, flags, otherwise=f"See {self.prog} --help.")


def _recipe_help(argv: list[str]) -> str | None:
    """What is said of the recipe whose help is asked for, if one is named."""
    from hf_select.cli.recipe import recipe_help

    named = bool(argv) and not argv[0].startswith("-")
    return recipe_help(argv[0]) if named and {"-h", "--help"} & set(argv) else None


def _setting(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _peek(argv: list[str]) -> dict[str, Any]:
    """The scorer, selector, method or backend that is asked for: which flags there are depends on it."""
    peek = _Parser("hf-select", add_help=False, allow_abbrev=False)
    for flag in ("--scorer", "--selector", "--method", "--backend"):
        peek.add_argument(flag)
    return vars(peek.parse_known_args(argv)[0])


def _need_choice(name: str, cls: Any, asked: dict[str, Any]) -> None:
    """Raise if the scorer, selector or method is not named, or not known: which flags there are depends on it."""
    from hf_select.scoring import SCORERS
    from hf_select.selection import SELECTORS

    for kind, known in (("scorer", SCORERS), ("selector", SELECTORS)):
        if asked[kind] is None and any(f.name == kind and f.default is MISSING for f in settable(cls)):
            raise ValueError(f"hf-select {name} needs --{kind}, one of {', '.join(known)}.")
    if name in ("train", "generate"):
        from hf_select.cli.train import METHODS

        methods = list(METHODS) if name == "train" else ["glan", "responses"]
        if asked["method"] is None:
            raise ValueError(
                f"hf-select {name} needs a method: hf-select {name} {methods[0]}. Known: {', '.join(methods)}."
            )
        if asked["method"] not in methods:
            raise suggest("method", asked["method"], methods)


def _epilog(name: str, cls: Any) -> str:
    text = f"example:\n  {cls.example}"
    if name in ("score", "index", "advise", "select"):
        kind = "selector" if name == "select" else "scorer"
        text += f"\n\nThe settings of a {kind}: hf-select {name} --{kind} NAME --help"
    if name == "run":
        from hf_select.cli.recipe import recipes

        described = {
            known: re.search("^description: (.*)", path.read_text("utf-8"), re.M) for known, path in recipes().items()
        }
        text += "\n\nrecipes, most also as NAME_tiny (offline, on a CPU):\n" + "\n".join(
            f"  {known:<22}{found[1]}" for known, found in described.items() if found and not known.endswith("_tiny")
        )
    return text


def _one_line(error: BaseException) -> str:
    """What went wrong. What no user should cause names its kind, and where its traceback is."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename is not None and type(error) in _OF_FILES:
        return f'"{error.filename}" {_OF_FILES[type(error)]}.'
    if isinstance(error, (ValueError, OSError, ImportError)) and text:
        return text
    with tempfile.NamedTemporaryFile("w", prefix="hf-select-", suffix=".txt", delete=False, encoding="utf-8") as file:
        traceback.print_exception(error, file=file)
    return f"{type(error).__name__}{': ' if text else ''}{text}  (unexpected; the traceback is in {file.name})"


if __name__ == "__main__":
    sys.exit(main())

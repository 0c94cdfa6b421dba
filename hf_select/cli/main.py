"""The program hf-select: parses a command line, runs the command, and reports an error in one line."""

import argparse
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING
from typing import Any

from hf_select._version import __version__
from hf_select.cli.command import Command, Values
from hf_select.cli.commands import COMMANDS, command_class, make_command
from hf_select.cli.settings import add_flags, add_positional, choices_of, nearest, settable, suggest
from hf_select.extras import explained, require


# What is wrong with a path, by the error of the operating system.
_PATH_ERRORS: dict[type, str] = {
    FileNotFoundError: "does not exist",
    FileExistsError: "is a file, and a folder is needed",
    NotADirectoryError: "lies below a file, and a folder is needed; choose another path",
    IsADirectoryError: "is a folder, and a file is needed",
    PermissionError: "cannot be read or written: permission denied",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 2 after an error, which is printed in one line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        command, values = _parse(argv)
        _hide_library_bars()
        with _messages_above_bars():
            next_step = make_command(command, values).run()
        if next_step:
            print(f"Next: {next_step}")
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nhf-select: stopped. The same command resumes what can be resumed.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as head, has closed the pipe; stdout is flushed again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if os.environ.get("HF_SELECT_TRACEBACK"):
            raise
        print(f"hf-select: error: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _hide_library_bars() -> None:
    """Turn off the progress bars of reading and writing files."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def _messages_above_bars() -> Iterator[None]:
    """Print warnings and log messages on lines of their own above the progress bars."""
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


def _parse(argv: list[str]) -> tuple[str, Values]:
    """(command, its settings by name)."""
    if not argv or argv[0].startswith("-") or argv[0] == "help":
        _print_top_help(argv)
        raise ValueError(f'"{argv[0]}" comes before the command. See hf-select --help.')
    name, *words = argv
    cls = command_class(name)
    if cls is None:
        raise suggest("command", name, COMMANDS, otherwise="See hf-select --help.")
    for flag, other in cls.other_commands.items():
        if flag in words:
            return _parse([other, *(word for word in words if word != flag)])
    named = bool(words) and not words[0].startswith("-")
    if cls.first_word is not None and named:
        words = [f"--{cls.first_word}", *words]
    given = _peek(cls, words)
    if cls.positional and named:
        given[cls.positional[0]] = words[0]
    if not {"-h", "--help"} & set(words):
        require(f"hf-select {name}", *cls.modules)
        _check_decided(name, cls, given)
    parser = _Parser(
        prog=f"hf-select {name}",
        description=cls.about(given),
        epilog=cls.epilog(name, given),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_positional(parser, cls, cls.positional)
    for part in cls.parts(given):
        add_flags(parser, part, f"settings of {part.__name__}", skip=[f.name for f in settable(cls)] + parser.taken())
    add_flags(parser, cls, "settings", skip=cls.positional)
    return name, vars(parser.parse_intermixed_args(words))


def _print_top_help(argv: list[str]) -> None:
    """Print the list of commands or the version and exit, where one of them is asked for."""
    parser = _Parser(
        "hf-select",
        usage="hf-select COMMAND ...",
        description="Score, select and train on instruction data.\n\ncommands:\n"
        + "\n".join(f"  {name:<20}{summary}" for name, (_, summary) in COMMANDS.items()),
        epilog="hf-select COMMAND --help shows its settings.\n"
        "Start here: hf-select run quickstart   (offline, on a CPU, a minute and a half)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.parse_args(["--help"] if not argv or argv[0] == "help" else argv)


def _peek(cls: type[Command], words: list[str]) -> dict[str, Any]:
    """The settings among the words on which the other settings depend."""
    parser = _Parser("hf-select", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for setting in {*cls.decided_by, cls.first_word} - {None}:
        parser.add_argument(f"--{setting}")
    return vars(parser.parse_known_args(words)[0])


def _check_decided(name: str, cls: type[Command], given: Values) -> None:
    """Raise if the scorer, selector or method is missing, or the first word is not a known value."""
    required = {f.name for f in settable(cls) if f.default is MISSING}
    for setting, known in cls.decided_by.items():
        if setting in given or setting not in required:
            continue
        if setting == cls.first_word:
            raise ValueError(f"hf-select {name} needs a {setting}: {cls.example}. Known: {', '.join(known)}.")
        raise ValueError(f"hf-select {name} needs --{setting}, one of {', '.join(known)}.")
    first = cls.first_word
    if first is not None and first in given:
        known = cls.decided_by.get(first) or choices_of(cls, first)
        if given[first] not in known:
            raise suggest(first, given[first], known)


class _Parser(argparse.ArgumentParser):
    def taken(self) -> list[str]:
        """The settings that the parser has already."""
        return [action.dest for action in self._actions]

    def error(self, message: str):  # noqa: ANN201
        """Raise ValueError with the nearest flags, instead of printing the usage and exiting."""
        what, _, words = message.partition(": ")
        if what == "the following arguments are required":
            missing = words.split(", ")[0].lower()
            article = "" if missing.endswith("s") else "a "
            raise ValueError(f"{self.prog} needs {article}{missing}. See {self.prog} --help.")
        if what != "unrecognized arguments":
            raise ValueError(f"{message}. See {self.prog} --help.")
        flag = next((word.partition("=")[0] for word in words.split() if word.startswith("--")), None)
        if flag is None:
            raise ValueError(f'"{words}" belongs to no flag. See {self.prog} --help.')
        if flag[2:].replace("-", "_") in self.taken():  # a positional setting
            raise ValueError(f"{flag} is given without its name: {self.prog} {flag[2:].upper()}.")
        flags = [option for action in self._actions for option in action.option_strings if option[:2] == "--"]
        near = nearest(flag, flags)
        if "--args" in flags:
            hint = f" Did you mean {' or '.join(near)}?" if near not in ([], ["--args"]) else ""
            raise ValueError(
                f'unknown flag "{flag}".{hint} A setting of the trainer goes into --args: --args '
                f"{_setting_name(flag)}=VALUE."
            )
        raise suggest("flag", flag, flags, otherwise=f"See {self.prog} --help.")


def _setting_name(flag: str) -> str:
    """tokens_per_batch for --tokens-per-batch."""
    return flag.lstrip("-").replace("-", "_")


def _one_line(error: BaseException) -> str:
    """The message of an error. One that no user should cause also has its type and the file of its traceback."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename is not None and type(error) in _PATH_ERRORS:
        return f'"{error.filename}" {_PATH_ERRORS[type(error)]}.'
    if isinstance(error, ImportError):
        text = str(explained("this command", error))
    if isinstance(error, (ValueError, OSError, ImportError)) and text:
        return text
    with tempfile.NamedTemporaryFile("w", prefix="hf-select-", suffix=".txt", delete=False, encoding="utf-8") as file:
        traceback.print_exception(error, file=file)
    return f"{type(error).__name__}{': ' if text else ''}{text}  (unexpected; the traceback is in {file.name})"


if __name__ == "__main__":
    sys.exit(main())

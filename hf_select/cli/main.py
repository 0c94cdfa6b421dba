"""hf-select: one subcommand a file, one dataclass a subcommand. Flags, YAML keys and dataclass fields are the same
names.
"""

import argparse
import os
import sys
from importlib import import_module
from typing import Any

from hf_select import __version__
from hf_select.cli.settings import add_flags, build, check_names, descriptions, settable, suggest


_COMMANDS = {
    "score": "hf_select.cli.score:Score",
    "index": "hf_select.cli.index:Index",
    "advise": "hf_select.cli.advise:Advise",
    "select": "hf_select.cli.select:Select",
    "report": "hf_select.cli.report:Report",
    "publish": "hf_select.cli.publish:Publish",
    "export": "hf_select.cli.exchange:Export",
    "import-scores": "hf_select.cli.exchange:ImportScores",
    "status": "hf_select.cli.status:Status",
    "train": "hf_select.cli.train:Train",
    "warm-up": "hf_select.cli.warm_up:WarmUpCommand",
    "compare": "hf_select.cli.compare:Compare",
    "join": "hf_select.cli.join:Join",
    "compare-generators": "hf_select.cli.generators:CompareGenerators",
    "search-mixture": "hf_select.cli.search_mixture:SearchMixture",
    "generate": "hf_select.cli.generate:Generate",
    "mix": "hf_select.cli.mix:Mix",
    "run": "hf_select.cli.recipe:Run",
    "demo-pool": "hf_select.cli.demo:DemoPool",
    "demo-sources": "hf_select.cli.demo:DemoSources",
    "demo-teacher": "hf_select.cli.demo:DemoTeacher",
    "demo-table": "hf_select.cli.demo:DemoTable",
}


class _Lazy:
    """A command's class, imported when it is asked for: `hf-select --help` should not wait for torch."""

    def __init__(self, home: str):
        self.home = home

    def __call__(self) -> Any:
        module, _, name = self.home.partition(":")
        return getattr(import_module(module), name)


COMMANDS = {name: _Lazy(home) for name, home in _COMMANDS.items()}


def make_command(name: str, values: dict[str, Any]) -> Any:
    """A command from flat values: its own settings, and those of its scorer or selector."""
    cls = COMMANDS[name]()
    parts = cls.parts(values)
    check_names(values, [cls, *parts], name)
    own = {f.name for f in settable(cls)}
    mine = {key: value for key, value in values.items() if key in own}
    rest = {key: value for key, value in values.items() if key not in own}
    return build(cls, {**mine, **({"settings": rest} if rest else {})}, f"hf-select {name}")


def main(argv: list[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        command, values = _parse(argv)
        _own_bars_only()
        make_command(command, values).run()
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("HF_SELECT_TRACEBACK"):
            raise
        print(f"hf-select: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hf-select: stopped; the same command goes on where it was.", file=sys.stderr)
        return 130
    return 0


def _own_bars_only() -> None:
    """Our bars say what is scored; those of reading and writing files only push them off the screen."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def _parse(argv: list[str]) -> tuple[str, dict[str, Any]]:
    """(command, its settings by name)."""
    if not argv or argv[0] in ("-h", "--help", "--version") or argv[0].startswith("-"):
        top = argparse.ArgumentParser("hf-select", description="Score, select and train on instruction data.")
        top.add_argument("--version", action="version", version=__version__)
        listed = [name for name in _COMMANDS if not name.startswith("demo-")]
        top.add_argument("command", choices=listed, help="hf-select COMMAND --help says more")
        top.epilog = "Start here: hf-select run quickstart   (offline, on a CPU, two minutes)"
        top.parse_args(argv or ["--help"])
    if len(argv) > 1 and argv[0] in ("score", "index") and argv[1] == "--status":
        argv = ["status", "--folder", *argv[2:]]
    if argv[0] in ("train", "generate") and len(argv) > 1 and not argv[1].startswith("-"):
        argv = [argv[0], "--method", *argv[1:]]
    if argv[0] == "mix" and len(argv) > 1 and not argv[1].startswith("-"):
        argv = ["mix", "--mixture", *argv[1:]]
    name, *rest = argv
    if name not in COMMANDS:
        raise suggest("command", name, [known for known in COMMANDS if not known.startswith("demo-")])
    cls = COMMANDS[name]()
    parser = _Parser(
        prog=f"hf-select {name}",
        description=(cls.__doc__ or "").split("\n\n")[0],
        epilog=_epilog(name, cls),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if name == "run":
        parser.add_argument("recipe", help="name of a recipe, or the path of a YAML file")
        parser.add_argument("overrides", nargs="*", metavar="step.setting=value", help="in place of the recipe's own")
        add_flags(parser, cls, "settings", skip=("recipe", "overrides"))
        return name, vars(parser.parse_intermixed_args(rest))
    positional = getattr(cls, "positional", None)
    if positional:
        parser.add_argument(positional, metavar=positional.upper(), help=descriptions(cls)[positional])
    for part in cls.parts(_peek(rest)):
        add_flags(parser, part, f"settings of {part.__name__}", skip=[f.name for f in settable(cls)] + parser.taken())
    add_flags(parser, cls, "settings", skip=[positional] if positional else [])
    return name, vars(parser.parse_args(rest))


class _Parser(argparse.ArgumentParser):
    def taken(self) -> list[str]:
        return [action.dest for action in self._actions]

    def error(self, message: str):  # noqa: ANN201
        """One line and the nearest known flag, in place of the whole usage."""
        flag = next((word for word in message.split() if word.startswith("--")), None)
        if message.startswith("unrecognized arguments") and flag is not None:
            name = flag.partition("=")[0]
            raise suggest(
                "flag", name, [option for a in self._actions for option in a.option_strings if option[:2] == "--"]
            )
        raise ValueError(f"{message}. See {self.prog} --help.")


def _peek(argv: list[str]) -> dict[str, Any]:
    """The scorer, selector, method or backend that is asked for: which flags there are depends on it."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--scorer", "--selector", "--method", "--backend"):
        peek.add_argument(flag)
    return vars(peek.parse_known_args(argv)[0])


def _epilog(name: str, cls: Any) -> str:
    text = f"example:\n  {cls.example}"
    if name in ("score", "index", "advise", "select"):
        kind = "selector" if name == "select" else "scorer"
        text += f"\n\nThe settings of a {kind}: hf-select {name} --{kind} NAME --help"
    if name == "run":
        from hf_select.cli.recipe import recipes

        text += "\n\nrecipes: " + ", ".join(recipes())
    return text


def _one_line(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError) and error.filename:
        text = f'no file "{error.filename}".'
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())

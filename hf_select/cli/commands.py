"""The table of commands, and a command from flat values."""

from importlib import import_module
from typing import Any

from hf_select.cli.settings import build, check_names, settable


# name -> (where it is, what it does in one line): `hf-select --help` imports none of them.
_COMMANDS = {
    "run": ("hf_select.cli.recipe:Run", "run a recipe: all steps of a method, one after the other"),
    "score": ("hf_select.cli.score:Score", "score every row of a dataset by one method"),
    "select": ("hf_select.cli.select:Select", "select rows of a scored dataset under a budget"),
    "report": ("hf_select.cli.report:Report", "write what a selection did as one HTML page"),
    "compare": ("hf_select.cli.compare:Compare", "train selections and random rows at equal tokens: is one better?"),
    "join": ("hf_select.cli.join:Join", "set finished comparisons side by side, or merge their parts"),
    "advise": ("hf_select.cli.advise:Advise", "score a sample: is the pool worth scoring, and by which model?"),
    "index": ("hf_select.cli.index:Index", "encode every row once and keep the vectors"),
    "warm-up": ("hf_select.cli.warm_up:WarmUpCommand", "train the LoRA checkpoints that LESS needs"),
    "train": ("hf_select.cli.train:Train", "train a model: sft, irft, rft, sft-baseline"),
    "generate": ("hf_select.cli.generate:Generate", "make synthetic data: glan, responses"),
    "compare-generators": (
        "hf_select.cli.compare_generators:CompareGenerators",
        "compare several models' answers as data",
    ),
    "mix": ("hf_select.cli.mix:Mix", "mix rows of several sources in given amounts"),
    "search-mixture": ("hf_select.cli.search_mixture:SearchMixture", "search the weights of a mixture by small runs"),
    "publish": ("hf_select.cli.publish:Publish", "push a selection or an index to the Hub, with a card"),
    "export": ("hf_select.cli.exchange:Export", "write a subset for LLaMA-Factory, axolotl and open-instruct"),
    "import-scores": ("hf_select.cli.exchange:ImportScores", "add the scores of another program to a dataset"),
    "status": ("hf_select.cli.status:Status", "show what a scoring or index job has done, and its time left"),
    "demo-pool": ("hf_select.cli.demo:DemoPool", ""),
    "demo-sources": ("hf_select.cli.demo:DemoSources", ""),
    "demo-teacher": ("hf_select.cli.demo:DemoTeacher", ""),
    "demo-table": ("hf_select.cli.demo:DemoTable", ""),
}


class _Lazy:
    """A command's class, imported when it is asked for: `hf-select --help` should not wait for torch."""

    def __init__(self, home: str):
        self.home = home

    def __call__(self) -> Any:
        module, _, name = self.home.partition(":")
        return getattr(import_module(module), name)


COMMANDS = {name: _Lazy(home) for name, (home, _) in _COMMANDS.items()}


def make_command(name: str, values: dict[str, Any]) -> Any:
    """A command from flat values: its own settings, and those of its scorer or selector."""
    cls = COMMANDS[name]()
    parts = cls.parts(values)
    check_names(values, [cls, *parts], name)
    own = {f.name for f in settable(cls)}
    mine = {key: value for key, value in values.items() if key in own}
    rest = {key: value for key, value in values.items() if key not in own}
    return build(cls, {**mine, **({"settings": rest} if rest else {})}, f"hf-select {name}")

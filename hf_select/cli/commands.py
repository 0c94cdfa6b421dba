"""The table of commands, and how a command is built from flat values."""

from importlib import import_module

from hf_select.cli.command import Command, Values
from hf_select.cli.settings import build, check_names, settable


# name -> (class, what it does in one line). The lines are here because `hf-select --help` imports no command.
COMMANDS = {
    "run": ("hf_select.cli.recipe:Run", "run a recipe: all steps of a method, one after the other"),
    "score": ("hf_select.cli.score:Score", "score every row of a dataset by one method"),
    "select": ("hf_select.cli.select:Select", "select rows of a scored dataset under a budget"),
    "report": ("hf_select.cli.report:Report", "write what a selection did as one HTML page"),
    "compare": ("hf_select.cli.compare:Compare", "train selections and random rows at equal tokens: is one better?"),
    "validate-scores": (
        "hf_select.cli.validate_scores:ValidateScores",
        "train on random subsets: do scores predict the loss?",
    ),
    "join": ("hf_select.cli.join:Join", "set finished comparisons side by side, or merge their parts"),
    "advise": ("hf_select.cli.advise:Advise", "score a sample: is the pool worth scoring, and by which model?"),
    "index": ("hf_select.cli.index:Index", "encode every row once and keep the vectors"),
    "warm-up": ("hf_select.cli.warm_up:WarmUpCommand", "train the LoRA checkpoints that LESS needs"),
    "train": ("hf_select.cli.train:Train", "train a model: sft, irft, rft, sft-baseline"),
    "generate": ("hf_select.cli.generate:Generate", "make synthetic data: glan, responses"),
    "compare-generators": (
        "hf_select.cli.compare_generators:CompareGenerators",
        "compare several models' answers as training data",
    ),
    "mix": ("hf_select.cli.mix:Mix", "mix rows of several sources in given amounts"),
    "search-mixture": ("hf_select.cli.search_mixture:SearchMixture", "search the weights of a mixture by small runs"),
    "publish": ("hf_select.cli.publish:Publish", "push a selection or an index to the Hub, with a card"),
    "export": ("hf_select.cli.exchange:Export", "write a subset for LLaMA-Factory, axolotl and open-instruct"),
    "import-scores": ("hf_select.cli.exchange:ImportScores", "add the scores of another program to a dataset"),
    "list": ("hf_select.cli.list_methods:ListMethods", "list the scorers and the selectors, with their papers"),
    "status": ("hf_select.cli.status:Status", "show what a scoring or index job has done, and its time left"),
}

# Steps of the quickstart and of the tiny recipes; --help does not list them.
DEMO_STEPS = {
    "demo-pool": "hf_select.cli.demo:DemoPool",
    "demo-sources": "hf_select.cli.demo:DemoSources",
    "demo-teacher": "hf_select.cli.demo:DemoTeacher",
    "quickstart-data": "hf_select.cli.demo:QuickstartData",
    "quickstart-table": "hf_select.cli.demo:QuickstartTable",
    "quickstart-next": "hf_select.cli.demo:QuickstartNext",
}


def command_class(name: str) -> type[Command] | None:
    """The class of a command, or None for an unknown name. Imports the module of the command."""
    home = COMMANDS[name][0] if name in COMMANDS else DEMO_STEPS.get(name)
    if home is None:
        return None
    module, _, cls = home.partition(":")
    return getattr(import_module(module), cls)


def make_command(name: str, values: Values) -> Command:
    """A command from flat values: its own settings, and those of its scorer, selector or method."""
    cls = command_class(name)
    assert cls is not None
    check_names(values, [cls, *cls.parts(values)], name)
    own = {f.name for f in settable(cls)}
    mine = {key: value for key, value in values.items() if key in own}
    rest = {key: value for key, value in values.items() if key not in own}
    return build(cls, {**mine, **({"settings": rest} if rest else {})}, f"hf-select {name}")

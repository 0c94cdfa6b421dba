"""hf-select run: the steps of a recipe, of which finished ones are skipped.

A recipe is YAML: `description` and `steps`, a mapping from step name to the settings of a command. A step whose name
is not that of its command has the key `command`. `notes` may have a line for each step, which is printed with its
name. `${output_dir}` is replaced by the folder of the run. The run writes its resolved config.yaml into that folder;
this is a recipe, and running it repeats the run. If other settings would replace the results of a finished step, the
run is refused without --overwrite.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hf_select.atomic import atomic_path, read_json, write_json
from hf_select.cli.command import Command, Values
from hf_select.cli.settings import check_names, check_values, descriptions, settable, suggest
from hf_select.extras import install_command, require
from hf_select.recipe import fill_output_dir, read_recipe_file, texts_of
from hf_select.strict_yaml import parse_yaml
from hf_select.training.launcher_env import own_precision


Settings = dict[str, Any]  # setting -> its value in YAML
Steps = dict[str, Settings]

RECIPE_KEYS = ("description", "steps", "notes")
_CHANGED = "; run with "  # in a description, before the overrides


@dataclass
class Run(Command):
    """Run a recipe, by name or file, and skip steps that are finished. hf-select run RECIPE --help shows what a recipe
    does, what it costs, and its settings.

    Args:
        recipe: name of a recipe that comes with hf_select (see the list below), or the path of a YAML file.
        overrides: changed settings of the recipe, each as step.setting=value.
        output_dir: folder for all results; by default hf_select_runs/RECIPE.
        overwrite: replace results in this folder that were made with other settings.
    """

    recipe: str
    overrides: list[str] = field(default_factory=list)
    output_dir: str | None = None
    overwrite: bool = False

    example: ClassVar[str] = "hf-select run quickstart"
    positional: ClassVar[tuple[str, ...]] = ("recipe", "overrides")

    @classmethod
    def about(cls, values: Values) -> str:
        """The header and the settings of the named recipe."""
        return recipe_help(values["recipe"]) if "recipe" in values else super().about(values)

    @classmethod
    def epilog(cls, name: str, values: Values) -> str:
        """The list of recipes, unless one is named."""
        if "recipe" in values:
            return ""
        lines = []
        for known, path in recipes().items():
            description = re.search("^description: (.*)", path.read_text("utf-8"), re.M)
            if description and not known.endswith("_tiny"):
                lines.append(f"  {known:<22}{description[1]}")
        text = "recipes, most also as NAME_tiny (offline, on a CPU):\n"
        return f"{super().epilog(name, values)}\n\n{text}" + "\n".join(lines)

    def run(self) -> str | None:
        """Run the steps that are not finished. Returns: what the last step proposes to run next."""
        import yaml

        name, recipe = read_recipe(self.recipe)
        names = [override.partition("=")[0] for override in self.overrides]
        for setting, override in zip(names, self.overrides, strict=True):
            if names.count(setting) > 1:
                raise ValueError(f'"{setting}" is given twice; give it once.')
            _override(recipe["steps"], override)
        require(f"the recipe {name}", *_modules_of(recipe["steps"]))
        steps = {step: _resolved(step, settings) for step, settings in recipe["steps"].items()}
        folder = Path(self.output_dir or Path("hf_select_runs") / name).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f'cannot write to output folder "{folder}": {error.strerror}. Choose another.') from None
        _check_folder(folder, steps, self.overwrite)
        notes = recipe.get("notes", {})
        config = {"description": _with_overrides(recipe.get("description", name), self.overrides), "steps": steps}
        config |= {"notes": notes} if notes else {}
        with atomic_path(folder / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
        ran, proposed = False, None
        for number, step in enumerate(steps, 1):
            label = f"[{number}/{len(steps)}] {step}" + (f": {notes[step]}" if step in notes else "")
            lasting, proposed = _run_step(label, folder, step, steps, again=ran, overwrite=self.overwrite)
            ran |= lasting
        print(
            f"\nDone. Everything is in {folder}; its config.yaml repeats this run: hf-select run {folder}/config.yaml"
        )
        return proposed


def _with_overrides(description: str, overrides: list[str]) -> str:
    """The description of a recipe with its overrides; of several overrides of a setting, the last."""
    what, _, before = description.partition(_CHANGED)
    settings = [override.partition("=")[0] for override in overrides]
    kept = [each for each in before.split("; ") if each and each.partition("=")[0] not in settings]
    return what + (_CHANGED + "; ".join([*kept, *overrides]) if kept or overrides else "")


def recipes() -> dict[str, Path]:
    """The recipes that come with hf_select: name -> file. They are next to the package in a checkout, and inside it in
    a wheel."""
    package = Path(__file__).parents[1]
    folder = next(path for path in (package / "recipes", package.parent / "recipes") if path.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_recipe(name: str) -> tuple[str, Settings]:
    """(name, recipe) from a file or by name, with its keys checked."""
    path = Path(name).expanduser()
    if not path.is_file():
        if path.suffix in (".yaml", ".yml") or "/" in name:
            raise ValueError(f'no recipe file "{name}".')
        known = recipes()
        if name not in known:
            raise suggest("recipe", name, known, otherwise="See hf-select run --help.")
        path = known[name]
    recipe = read_recipe_file(path)
    for key in recipe:
        if key not in RECIPE_KEYS:
            raise suggest("key of a recipe", key, RECIPE_KEYS)
    notes = recipe.get("notes", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise ValueError(f"notes of the recipe: {notes!r} is not a mapping from step name to text.")
    for step in notes:
        if step not in recipe["steps"]:
            raise suggest("step in the notes of the recipe", step, recipe["steps"])
    stem = path.stem if path.stem != "config" else path.resolve().parent.name
    return stem, recipe


def recipe_help(name: str) -> str:
    """The header of a recipe, the extras it needs, and its settings in the form step.setting=value."""
    _, recipe = read_recipe(name)
    path = recipes().get(name, Path(name).expanduser())
    header = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        header.append(line.removeprefix("#").removeprefix(" "))
    lines = [line for step, settings in recipe["steps"].items() for line in _settings_of(step, settings)]
    modules = _modules_of(recipe["steps"])
    needs = [f"needs {install_command(modules)}", ""] if modules else []
    title = "settings, with their values in the recipe:"
    return "\n".join([*header, *([""] if header else []), *needs, title, *lines])


def _settings_of(prefix: str, settings: Settings) -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _settings_of(f"{prefix}.{name}", value)
        else:
            yield f"  {prefix}.{name}={value if isinstance(value, str) else json.dumps(value, default=str)}"


def _modules_of(steps: Steps) -> list[str]:
    """The optional modules that the commands of the steps need."""
    from hf_select.cli.commands import command_class

    commands = [command_class(settings.get("command", step)) for step, settings in steps.items()]
    return list(dict.fromkeys(module for command in commands if command is not None for module in command.modules))


def _override(steps: Steps, override: str) -> None:
    """Apply step.setting=value to the steps; the value is YAML."""
    path, equals, value = override.partition("=")
    step, dot, setting = path.removeprefix("steps.").partition(".")
    if not (equals and dot and setting):
        raise ValueError(f'"{override}" is not of the form step.setting=value.')
    if step not in steps:
        raise suggest("step", step, steps)
    *within, last = setting.split(".")  # train.args.learning_rate=1e-5: within a setting that is a mapping
    place = steps[step]
    for name in within:
        inner = place.get(name) or {}
        if not isinstance(inner, dict):
            raise ValueError(f'"{override}": {name} is {inner!r} and not a mapping; give step.setting=value.')
        place[name] = place = dict(inner)
    place[last] = parse_yaml(value, f'the value of "{override}"')


def _resolved(step: str, settings: Settings) -> Settings:
    """The settings of a step, checked, with the defaults of its command."""
    from hf_select.cli.commands import COMMANDS, command_class

    name = settings.get("command", step)
    command = command_class(name)
    if command is None or name == "run":
        raise suggest("command", name, [known for known in COMMANDS if known != "run"])
    given = {key: value for key, value in settings.items() if key != "command"}
    classes = [command, *command.parts(given)]
    check_names(given, classes, f'step "{step}"', otherwise=f"See hf-select {name} --help.")
    try:
        check_values(given, classes)
    except ValueError as error:
        raise ValueError(f'step "{step}": {error}') from None
    defaults = dict(_defaults(classes))
    return {"command": name, **defaults, **given}


def _defaults(classes: list[type]) -> Iterator[tuple[str, Any]]:
    for cls in classes:
        for f in settable(cls):
            if f.default is not MISSING and f.default is not None:
                yield f.name, f.default


def _check_folder(folder: Path, steps: Steps, overwrite: bool) -> None:
    """Raise if the run would replace results of other settings, or a config.yaml that no run has written."""
    config = folder / "config.yaml"
    if config.exists():
        try:
            read_recipe(str(config))
        except ValueError:
            raise ValueError(
                f'"{config}" is not that of a run and is not replaced; choose another --output-dir.'
            ) from None
    changes = []
    for step, settings in steps.items():
        before: Settings = (read_json(_marker(folder, step)) or {}).get("settings") or {}
        now = _through_json(settings)
        places = [key for key in ("output", "output_dir") if key in now and before.get(key) == now[key]]
        if not any(Path(fill_output_dir(now[key], str(folder))).expanduser().exists() for key in places):
            continue
        for name in dict.fromkeys([*before, *now]):
            if before.get(name) != now.get(name):
                changes.append(f"{step}.{name} was {_as_text(before.get(name))} and is {_as_text(now.get(name))}")
    if changes and not overwrite:
        raise ValueError(
            f'"{folder}" holds results of other settings: {"; ".join(changes)}. Give another --output-dir, or '
            "--overwrite to replace them."
        )


def _through_json(settings: Settings) -> Settings:
    """The settings after a round trip through JSON."""
    return json.loads(json.dumps(settings, default=str))


def _as_text(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def _marker(folder: Path, step: str) -> Path:
    return folder / ".steps" / f"{step}.json"


def _run_step(
    label: str, folder: Path, step: str, steps: Steps, again: bool, overwrite: bool
) -> tuple[bool, str | None]:
    """Run a step unless it is finished, with the same settings and with the files that they name unchanged.

    Args:
        again: run the step in any case, because an earlier step ran.
    Returns: whether the step left new results, so that later steps must run again; the command that it proposes next.
    """
    from hf_select.cli.commands import make_command

    settings = steps[step]
    name = settings["command"]
    given = fill_output_dir({key: value for key, value in settings.items() if key != "command"}, str(folder))
    marker = _marker(folder, step)
    before = read_json(marker)
    if not again and before is not None and before["state"] == _state_hash(name, given):
        print(f"{label}: finished earlier, skipped", flush=True)
        return False, None
    print(label, flush=True)
    begin = time.perf_counter()
    begins = before is None or before.get("settings") != _through_json(settings)
    command = make_command(name, given)
    if overwrite and "overwrite" in descriptions(type(command)):
        command = make_command(name, given | {"overwrite": True})
    elif overwrite and before is not None:
        begins |= _remove_results(before, folder, step, steps)
    lasting = not command.prints_only
    if lasting and begins:
        marker.parent.mkdir(exist_ok=True)
        write_json(marker, {"state": None, "settings": _through_json(settings)})
    with own_precision():
        proposed = command.run()
    if lasting:
        seconds = round(time.perf_counter() - begin, 3)
        write_json(
            marker, {"state": _state_hash(name, given), "seconds": seconds, "settings": _through_json(settings)}
        )
    return lasting, proposed


def _remove_results(before: Settings, folder: Path, step: str, steps: Steps) -> bool:
    """Remove the output folder of a step whose settings or inputs have changed, since its command would refuse it.

    Only a folder inside the run's folder that no other step writes to is removed. A step that was interrupted with the
    same settings is resumed instead. Returns: whether a folder was removed.
    """
    made_with, now = before.get("settings") or {}, _through_json(steps[step])
    if before["state"] is None and made_with == now or made_with.get("output_dir") != now.get("output_dir"):
        return False

    def places(settings: Settings) -> list[Path]:
        given = (settings[key] for key in ("output", "output_dir") if settings.get(key) is not None)
        return [Path(fill_output_dir(place, str(folder))).expanduser().resolve() for place in given]

    others = [path for other in steps if other != step for path in places(steps[other])]
    own = [
        path
        for path in places(steps[step])
        if path.is_dir() and folder.resolve() in path.parents
        if not any(path == other or path in other.parents for other in others)
    ]
    for path in own:
        shutil.rmtree(path)
    return bool(own)


def _state_hash(command: str, settings: Settings) -> str:
    """Hash of a step's settings and of the size and time of every file that they name, inputs and outputs alike."""
    files = []
    for text in texts_of(settings):
        path = Path(text).expanduser()
        for file in [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []:
            stat = file.stat()
            files.append([str(file), stat.st_size, stat.st_mtime_ns if file.is_file() else 0])
    described = json.dumps([command, settings, files], sort_keys=True, default=str)
    return hashlib.sha256(described.encode()).hexdigest()

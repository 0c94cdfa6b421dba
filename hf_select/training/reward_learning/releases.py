"""The releases of TRL and transformers that the trainers of this package work with."""

import inspect
import re
from importlib.metadata import version


# Package -> the oldest and the newest release with which the tests ran.
TESTED = {"trl": ("1.14", "1.16"), "transformers": ("5.5", "5.24")}

# Private methods of TRL's and transformers' trainers that are overridden or extended here -> parameters that are used.
_OVERRIDDEN = {
    "_run_epoch": ("epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch"),
    "_init_training_state": ("max_steps", "resume_from_checkpoint"),
    "set_initial_training_values": ("args", "dataloader"),
    "_prepare_dataset": ("dataset", "processing_class", "args", "dataset_name"),
    "_precompute_ref_logps": ("dataset", "name", "batch_size"),
    "_tokenize_prompts": ("prompts",),
    "_generate_and_score_completions": ("inputs",),
}


def check_trl() -> None:
    """Raises: ImportError for a release of TRL that is too old."""
    oldest, installed = TESTED["trl"][0], version("trl")
    if _numbers(installed) < _numbers(oldest):
        raise ImportError(
            f'IRFT and RFT need trl>={oldest}, and trl {installed} is installed: pip install "trl>={oldest}"',
            name="trl",
        )


def check_overridden_methods(trainer: type) -> None:
    """Check that the methods which a trainer overrides still exist and take the same parameters.

    Raises: ImportError that names the method and the tested releases.
    """
    for name, parameters in _OVERRIDDEN.items():
        owners = [cls for cls in trainer.__mro__ if name in vars(cls)]
        if not owners or not owners[0].__module__.startswith("hf_select."):
            continue
        theirs = next((cls for cls in owners if not cls.__module__.startswith("hf_select.")), None)
        if theirs is None or not set(parameters) <= set(inspect.signature(vars(theirs)[name]).parameters):
            raise _untested(trainer, f"{name} is not there or takes other parameters")


def check_used_attributes(trainer: object, *names: str) -> None:
    """Check that the constructor of TRL's trainer has set the attributes that are used here.

    Raises: ImportError that names the attribute and the tested releases.
    """
    for name in names:
        if not hasattr(trainer, name):
            raise _untested(type(trainer), f"it has no {name}")


def _untested(trainer: type, reason: str) -> ImportError:
    """The error for releases with which a trainer does not work."""
    oldest, installed = TESTED["transformers"][0], version("transformers")
    if _numbers(installed) < _numbers(oldest):
        return ImportError(
            f"{trainer.__name__} needs transformers>={oldest}, and transformers {installed} is installed: pip install "
            f'"transformers>={oldest}"',
            name="transformers",
        )
    return ImportError(
        f"{trainer.__name__} does not work with the installed trl {version('trl')} and transformers {installed}: "
        f"{reason}. Tested are "
        + " and ".join(f"{package} {oldest} to {newest}" for package, (oldest, newest) in TESTED.items())
        + ": pip install "
        + " ".join(f'"{package}=={newest}.*"' for package, (_, newest) in TESTED.items())
        + ", or report it"
    )


def _numbers(release: str) -> tuple[int, ...]:
    """(1, 14) for "1.14.2.dev0" and "1.14rc1"."""
    return tuple(int(part) for part in re.findall(r"\d+", release)[:2])

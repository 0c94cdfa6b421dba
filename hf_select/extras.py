"""Packages that only some features need, and the extras that install them: pip install "hf-select[EXTRA]"."""

import sys
from collections.abc import Collection
from importlib.util import find_spec


# Extra -> modules that its packages provide. pyproject.toml has the versions.
EXTRAS = {
    "train": ("trl", "peft"),
    "report": ("matplotlib", "scipy"),
    "text": ("sklearn", "datasketch", "py3langid"),
    "embed": ("sentence_transformers",),
    "eval": ("lm_eval", "math_verify"),
    "quantization": ("bitsandbytes",),
    "deepspeed": ("deepspeed",),
    "vllm": ("vllm",),
    "ray": ("ray",),
}


def require(what: str, *modules: str) -> None:
    """Check that the modules are installed. Nothing is imported.

    Args:
        what: the feature that needs them, for the error.
    Raises: ImportError that names the missing modules and the extras that install them, in one line.
    """
    missing = [module for module in modules if not _is_installed(module)]
    if missing:
        raise missing_packages(what, missing)


def missing_packages(what: str, missing: list[str]) -> ImportError:
    """The error for a feature whose packages are not installed."""
    names = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'}"
    return ImportError(f"{names} needed for {what}: {install_command(missing)}", name=missing[0])


def install_command(modules: Collection[str]) -> str:
    """The command that installs the extras of these modules."""
    extras = [extra for extra, inside in EXTRAS.items() if set(inside) & set(modules)]
    return f'pip install "hf-select[{",".join(extras)}]"'


def explained(what: str, error: ImportError) -> ImportError:
    """The one-line error of `require` for a failed import of an optional package; other errors are unchanged."""
    if not isinstance(error, ModuleNotFoundError):
        return error
    module = (error.name or "").partition(".")[0]
    optional = any(module in modules for modules in EXTRAS.values())
    return missing_packages(what, [module]) if optional and not _is_installed(module) else error


def _is_installed(module: str) -> bool:
    if module in sys.modules:  # find_spec would ask for its __spec__, which a module made by hand does not have
        return sys.modules[module] is not None
    return find_spec(module) is not None

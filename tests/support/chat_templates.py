"""The chat templates that the installed release of TRL ships: 0.24 and 1.0 ship none, 1.14 some."""

from pathlib import Path

import pytest
import trl


class _Templates(dict[str, str]):
    """Templates by name. A test that asks for one that this release does not have yet is skipped."""

    def __missing__(self, name: str) -> str:
        if "gemma4_v5" in self:  # trl 1.15 has all that tests ask for: the name is misspelt
            raise KeyError(name)
        pytest.skip(f"trl {trl.__version__} ships no chat template {name}")


FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = _Templates({path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))})

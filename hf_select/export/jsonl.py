"""Export a selected subset for other trainers: one JSONL file, and the configuration that reads it.

LLaMA-Factory   an entry in dataset_info.json; copy it to the one in the data folder, or set dataset_dir
axolotl         axolotl.yaml, the `datasets` of a configuration
open-instruct   open_instruct.yaml, the dataset settings of finetune.py

Messages are written as they are in the dataset; tools are written as JSON text. axolotl (067b021) and open-instruct
(e6c3044) read both. LLaMA-Factory (ff6d4d1) reads plain turns from the same file. Rows with tool calls or reasoning
need a second file for it: its `openai` converter changes the system text, and its `sharegpt` converter reads only its
own turns, see llama_factory.py.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_select.atomic import atomic_path, read_json, write_json
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import conversations, layout, readable_columns
from hf_select.data.exact_json import columns_of, dumps
from hf_select.data.messages import as_messages, tools_text
from hf_select.export.llama_factory import NotExpressible, is_plain, sharegpt_row


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)


def export_subset(
    subset: "Dataset", output_dir: str | os.PathLike, name: str = "subset", overwrite: bool = False
) -> list[Path]:
    """Write NAME.jsonl and the configuration of each trainer, and return the paths.

    A line of NAME.jsonl has `messages`, with `tools` where the row has some, or `text`.

    Args:
        subset: the selected rows, in any known layout.
        name: name of the file, and of the dataset in the configurations.
        overwrite: replace files of these names that exist. Other entries of dataset_info.json always stay.
    Raises: ValueError if a row cannot be read, if raw text is mixed with conversations, or if a file exists.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f'name is "{name}"; it names a file: give letters, digits, "_", "-" and "." only.')
    folder = Path(output_dir).expanduser()
    file, info = folder / f"{name}.jsonl", folder / "dataset_info.json"
    is_text = layout(subset.column_names) == "text"
    entries = _existing_entries(info, name, overwrite)
    targets = [file, folder / "axolotl.yaml", *([] if is_text else [folder / "open_instruct.yaml"])]
    for_llama_factory = folder / f"{name}.llama_factory.jsonl"
    if existing := [str(path) for path in [*targets, for_llama_factory] if path.exists() and not overwrite]:
        raise ValueError(f"{', '.join(existing)} exists; choose another --output-dir, or replace with --overwrite.")
    folder.mkdir(parents=True, exist_ok=True)
    written = [file, info, *targets[1:]]
    plain, has_tools = _write_jsonl(subset, file)
    if not plain:
        written.append(for_llama_factory)
        _write_for_llama_factory(subset, for_llama_factory)
    write_json(info, {**entries, name: _dataset_info(file if plain else for_llama_factory, is_text, plain)})
    for path, snippet in zip(targets[1:], _snippets(str(file), is_text, has_tools), strict=True):
        _write_yaml(path, snippet)
    return written


# --------------------------------------------------------------------------------------------------------------------


def _write_jsonl(subset: "Dataset", file: Path) -> tuple[bool, bool]:
    """Write the rows. Returns whether all of them are plain turns, and whether any has tools."""
    plain = True
    has_tools = False
    with atomic_path(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        for row in _exported_rows(subset):
            tools = row.get("tools")
            plain &= "text" in row or (tools is None and is_plain(row["messages"]))
            has_tools |= tools is not None
            out.write(dumps(row) + "\n")
    return plain, has_tools


def _write_for_llama_factory(subset: "Dataset", file: Path) -> None:
    left_out: Counter[str] = Counter()
    with atomic_path(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        for row in _exported_rows(subset):
            try:
                out.write(dumps(sharegpt_row(row["messages"], row.get("tools"))) + "\n")
            except NotExpressible as reason:
                left_out[str(reason)] += 1
    if left_out:
        reasons = "; ".join(f"{count:,}: {reason}" for reason, count in left_out.most_common())
        logger.warning(
            "%s leaves out %d of %d rows that LLaMA-Factory cannot express (%s).",
            *(file, left_out.total(), len(subset), reasons),
        )


def _exported_rows(subset: "Dataset") -> Iterator[dict[str, Any]]:
    """Each row as it is written: `text`, or `messages` and, where it has some, `tools`."""
    names = readable_columns(subset.column_names)
    read = subset.select_columns(names).with_format("arrow")
    for start in range(0, len(subset), 1000):
        batch = columns_of(read[start : start + 1000], subset.features, drop_filled=True)
        for i, row in enumerate(conversations(batch)):
            if isinstance(row, BadRow):
                raise ValueError(f"row {start + i} of the subset cannot be read: {row}. Leave it out, or fix it.")
            raw = {name: values[i] for name, values in batch.items()}
            tools = tools_text(raw)
            if row.text is not None:
                yield {"text": row.text}
            else:
                yield {"messages": as_messages(raw, row), **({} if tools is None else {"tools": tools})}


def _existing_entries(info: Path, name: str, overwrite: bool) -> dict[str, object]:
    """The entries of an existing dataset_info.json.

    Raises: ValueError if it is not a mapping, or has a dataset of this name that is not to be replaced.
    """
    if not info.exists():
        return {}
    entries = read_json(info)
    if not isinstance(entries, dict):
        raise ValueError(f'"{info}" is not a JSON object of datasets; fix it, or choose another --output-dir.')
    if name in entries and not overwrite:
        raise ValueError(f'"{info}" has a dataset "{name}"; choose another --name, or replace it with --overwrite.')
    return entries


def _dataset_info(file: Path, is_text: bool, plain: bool) -> dict[str, object]:
    """The dataset's entry in LLaMA-Factory's dataset_info.json."""
    if is_text:
        return {"file_name": file.name, "columns": {"prompt": "text"}}
    if not plain:  # LLaMA-Factory's own tags, its defaults
        columns = {"messages": "conversations", "tools": "tools"}
        return {"file_name": file.name, "formatting": "sharegpt", "columns": columns}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    return {
        "file_name": file.name,
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {**tags, "observation_tag": "tool", "function_tag": "function_call", "system_tag": "system"},
    }


def _snippets(path: str, is_text: bool, has_tools: bool) -> list[dict[str, object]]:
    """The configurations of axolotl and, for conversations, open-instruct: its finetune.py reads no raw text."""
    if is_text:
        return [{"datasets": [{"path": path, "ds_type": "json", "type": "completion", "field": "text"}]}]
    chat: dict[str, object] = {"path": path, "ds_type": "json", "type": "chat_template", "field_messages": "messages"}
    return [
        {"datasets": [{**chat, **({"field_tools": "tools"} if has_tools else {})}]},
        {
            "dataset_mixer_list": [path, "1.0"],
            "dataset_mixer_list_splits": ["train"],
            "dataset_transform_fn": ["sft_tulu_tokenize_and_truncate_v1", "sft_tulu_filter_v1"],
        },
    ]


def _write_yaml(path: Path, value: Mapping[str, object]) -> None:
    import yaml

    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")

"""A selected subset for other trainers: one JSONL file, and what to write into their configuration to read it.

LLaMA-Factory   dataset_info.json, to be merged into that of its data folder, or used by dataset_dir
axolotl         axolotl.yaml, the `datasets` of a configuration
open-instruct   open_instruct.yaml, the dataset settings of finetune.py
"""

import json
import os
from pathlib import Path
from typing import Any

from hf_select.files import write_json, written_whole
from hf_select.formats import BadRow, Conversation, conversations, layout, openai_message, readable_columns


def export(subset: Any, output_dir: str | os.PathLike, name: str = "subset") -> list[Path]:
    """Write NAME.jsonl (`messages`, with `tools` where rows have some; or `text`) and the snippets; return the paths.

    Args:
        subset: the selected rows, in any known layout.
        name: of the file and of the dataset in the snippets.
    Raises: ValueError if a row cannot be read, or if raw text is mixed with conversations.
    """
    import yaml

    names = readable_columns(subset.column_names)
    layout(subset.column_names)  # its error names all columns
    folder = Path(output_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    file, lines, has_tools = folder / f"{name}.jsonl", 0, False
    with written_whole(file) as temporary, temporary.open("w", encoding="utf-8") as out:
        for start in range(0, len(subset), 1000):
            for row in conversations(subset.select_columns(names)[start : start + 1000]):
                if isinstance(row, BadRow):
                    raise ValueError(f"row {lines} of the subset cannot be read: {row}. Leave it out, or mend it.")
                has_tools |= bool(row.tools) or any(message.get("tool_calls") for message in row.messages)
                out.write(json.dumps(_line(row), ensure_ascii=False) + "\n")
                lines += 1
    made = [file]
    is_text = layout(names) == "text"
    for target, value in _snippets(file, name, is_text, has_tools).items():
        path = folder / target
        if target.endswith(".json"):
            write_json(path, value)
        else:
            with written_whole(path) as temporary:
                temporary.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
        made.append(path)
    return made


def _line(row: Conversation) -> dict[str, Any]:
    if row.text is not None:
        return {"text": row.text}
    # Tools as a JSON text: their schemas differ from row to row, and readers of JSONL want one type a column.
    tools = {"tools": json.dumps(row.tools, ensure_ascii=False)} if row.tools else {}
    return {"messages": [openai_message(message) for message in row.messages], **tools}


def _snippets(file: Path, name: str, is_text: bool, has_tools: bool) -> dict[str, Any]:
    path = str(file)
    if is_text:  # open-instruct's finetune.py reads conversations alone
        return {
            "dataset_info.json": {name: {"file_name": file.name, "columns": {"prompt": "text"}}},
            "axolotl.yaml": {"datasets": [{"path": path, "ds_type": "json", "type": "completion", "field": "text"}]},
        }
    tags = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    }
    columns = {"messages": "messages", **({"tools": "tools"} if has_tools else {})}
    chat = {"path": path, "ds_type": "json", "type": "chat_template", "field_messages": "messages"}
    return {
        "dataset_info.json": {
            name: {
                "file_name": file.name,
                "formatting": "openai" if has_tools else "sharegpt",
                "columns": columns,
                "tags": tags,
            }
        },
        "axolotl.yaml": {"datasets": [{**chat, **({"field_tools": "tools"} if has_tools else {})}]},
        "open_instruct.yaml": {
            "dataset_mixer_list": [path, "1.0"],
            "dataset_mixer_list_splits": ["train"],
            "dataset_transform_fn": ["sft_tulu_tokenize_and_truncate_v1", "sft_tulu_filter_v1"],
        },
    }

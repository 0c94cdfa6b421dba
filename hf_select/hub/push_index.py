"""Publish the vectors of a pool as a dataset repository."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from hf_select.atomic import write_json
from hf_select.features.store import PoolIndex
from hf_select.hub.repository import check_repo_id, push_files
from hf_select.hub.scrub import scrubbed
from hf_select.reports.ledger import Step, read_step
from hf_select.reports.markdown import inline, table_text


def push_index(
    index: PoolIndex | str | os.PathLike,
    repo_id: str,
    *,
    license: str | Sequence[str],
    private: bool = True,
    revision: str = "main",
    token: str | None = None,
) -> str:
    """Publish the vectors of a pool, and return the URL of the commit.

    Others can compare the pool with their own queries without running the model over it.
    `PoolIndex.open(snapshot_download(repo_id, repo_type="dataset"))` opens the index.

    Args:
        index: a finished index, or its folder.
        repo_id: dataset repository, NAME/REPOSITORY; it is created if it does not exist.
        license: licence of the rows that the vectors represent.
        private: whether to create the repository as private; an existing one is not changed.
        revision: branch to push to.
        token: Hub token; by default the one that is logged in.
    Raises: ValueError if there is no finished index, or if the Hub refuses.
    """
    check_repo_id(repo_id)
    index = index if isinstance(index, PoolIndex) else PoolIndex.open(index)
    index.check()
    step = Step.from_dict(scrubbed(read_step(index.folder).to_dict()))
    with TemporaryDirectory() as temporary:
        place = Path(temporary)
        (place / "vectors").mkdir()
        for path in sorted((index.folder / "vectors").iterdir()):
            if path.suffix == ".arrow":
                os.symlink(path.resolve(), place / "vectors" / path.name)
        for name in ("manifest.json", "index.json", "vectors/probe.json"):
            write_json(place / name, scrubbed(json.loads((index.folder / name).read_text(encoding="utf-8"))))
        text = _index_card(repo_id, index, step, license)
        (place / "README.md").write_text(text, encoding="utf-8")
        return push_files(repo_id, place, lambda known, commit: None, private, revision, token)


def _index_card(repo_id: str, index: PoolIndex, step: Step, license: str | Sequence[str]) -> str:
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        license=license if isinstance(license, str) else list(license),
        pretty_name=repo_id.split("/")[-1],
        tags=["data-selection", "hf_select", "embeddings"],
        viewer=False,
    )
    settings = [[name, json.dumps(value, ensure_ascii=False)] for name, value in step.settings.items()]
    flops = f" and {step.cost['flops']:.3g} counted FLOPs" if "flops" in step.cost else ""
    source = (step.pool or {}).get("source") or "a dataset"
    return f"""---
{data.to_yaml()}
---

# {inline(repo_id.split("/")[-1])}

Vectors of the {len(index):,} rows of {inline(source)}, with {index.dimensions:,} dimensions, computed with hf_select
by {inline(step.step.removeprefix("index "))}. With them you can compare the rows with your own queries without
running the model over the rows again. hf_select raises an error if the rows, the model or the settings differ.

```python
from huggingface_hub import snapshot_download
from hf_select import PoolIndex

index = PoolIndex.open(snapshot_download("{repo_id}", repo_type="dataset"))
index.check(dataset)  # raises ValueError if these are not its rows
```

```bash
hf download {repo_id} --repo-type dataset --local-dir index
hf-select score --scorer rds --index index --dataset ... --queries TASK=FILE --output-dir scores
```

{table_text(["setting", "value"], settings)}

It took {step.cost["seconds"]:,.1f} seconds{flops} to compute.
"""

"""Columns are the same to a reader, whichever release of datasets and pyarrow wrote them."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, List, Value, load_dataset

from hf_select.data import _compat
from hf_select.data._compat import Json, cast_for_parquet, reads_null_in_fixed_lists


FIXED = Features(
    {"id": Value("int64"), "v": List(Value("float32"), length=2), "s": {"w": List({"x": Value("bool")}, length=1)}}
)
ROWS = {"id": [0, 1, 2], "v": [[1.0, 2.0], None, [3.0, 4.0]], "s": [{"w": [{"x": True}]}, {"w": None}, None]}


@pytest.mark.parametrize("reads", [True, False])
def test_lists_of_a_fixed_length_of_which_one_is_null_can_be_read(reads, monkeypatch, tmp_path):
    if not reads:
        monkeypatch.setattr(_compat, "reads_null_in_fixed_lists", lambda: False)
    table = cast_for_parquet(pa.Table.from_pydict(ROWS, FIXED.arrow_schema), FIXED)
    assert table.to_pydict() == ROWS and table.schema.names == FIXED.arrow_schema.names
    pq.write_table(table, tmp_path / "rows.parquet")
    assert pq.read_table(tmp_path / "rows.parquet").to_pydict() == ROWS
    read = load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), split="train")
    assert read.to_dict() == ROWS
    assert read.features["v"].length == (2 if _compat.reads_null_in_fixed_lists() else -1)


def test_whether_pyarrow_reads_nulls_is_asked_of_pyarrow():
    assert reads_null_in_fixed_lists() or int(pa.__version__.split(".")[0]) < 26


def test_json_values_are_kept_by_either_release(tmp_path):
    values = [{"a": 1, "b": None}, ["x", 2.5], "text", None]
    dataset = Dataset.from_dict({"v": values}, Features({"v": Json()}))
    dataset.save_to_disk(tmp_path / "saved")
    dataset.to_parquet(tmp_path / "rows.parquet")
    assert Dataset.load_from_disk(tmp_path / "saved")["v"][:] == values
    assert load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), split="train")["v"][:] == values
    assert Features.from_arrow_schema(pq.read_schema(tmp_path / "rows.parquet")) == Features({"v": Json()})

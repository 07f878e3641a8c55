"""Writes an annotated dataset of which a part is missing, for `scripts/ablate_nano.sh`.

`without_depth` and `without_trace` keep the reply's form, so that everything else stays as it is, but its depth codes,
or its trace points, are the same in every frame: nothing can be told with them. `half` keeps every second episode.
Statistics and conventions stay those of the whole dataset.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from molmoact_training.annotated_dataset import SCHEMA, AnnotatedDataset, shard_path

MIDDLE = 127  # of the picture, of 0..255


def without_depth(table: pa.Table) -> pa.Table:
    return _constant(table, "depth_codes", [0] * 100)


def without_trace(table: pa.Table) -> pa.Table:
    return _constant(table, "traces", [[MIDDLE, MIDDLE]])


def half(table: pa.Table) -> pa.Table:
    return table.filter(pc.equal(pc.bit_wise_and(table.column("episode"), 1), 0))


VARIANTS: dict[str, Callable[[pa.Table], pa.Table]] = {
    function.__name__: function for function in (without_depth, without_trace, half)
}


def _constant(table: pa.Table, column: str, value: object) -> pa.Table:
    field = SCHEMA.field(column)
    return table.set_column(SCHEMA.get_field_index(column), field, pa.array([value] * len(table), field.type))


def ablate(data: Path, variant: str, out: Path) -> None:
    """Copy `data` with the variant's change to every shard; `out` appears when it is whole."""
    AnnotatedDataset(data)  # named errors for what is not a dataset
    partial = out.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shards = sorted(data.glob("frames-*.arrow"))
    for number, path in enumerate(shards):
        table = VARIANTS[variant](pa.ipc.open_file(pa.memory_map(str(path))).read_all())
        with pa.OSFile(str(shard_path(partial, number)), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            writer.write_table(table)
    for path in set(data.iterdir()) - set(shards):
        shutil.copy(path, partial / path.name)
    partial.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    ablate(arguments.data, arguments.variant, arguments.out)


if __name__ == "__main__":
    main()

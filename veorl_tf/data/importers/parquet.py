"""Parquet tables of strangers, by pyarrow (requirements-import.txt)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from veorl_tf.core.arrays import READ_ERRORS
from veorl_tf.data.importers.base import MAX_BYTES, Unreadable, needs

BATCH = 64  # rows read in one go


def read(
    path: Path,
    name: str,
    columns: Sequence[str],
    episode: int | None = None,
    optional: Sequence[str] = (),
) -> Any:
    """A Parquet file's rows, of one episode or all, as a pyarrow.Table of `columns` and, as far as
    it has them, `optional` ones. Read in pieces, so that a small file cannot become endless rows.
    Raises Unreadable."""
    pq, pa = (needs(package, "LeRobot data") for package in ("pyarrow.parquet", "pyarrow"))
    batches, size = [], 0
    try:
        with pq.ParquetFile(str(path), page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            columns = [*columns, *(column for column in optional if column in names)]
            for column in columns:
                if names.count(column) != 1:
                    raise Unreadable(name, f"column {column} is missing")
            groups = [g for g in range(file.num_row_groups) if _may_hold(file.metadata, g, episode)]
            for batch in file.iter_batches(BATCH, groups, columns, use_threads=False):
                found = list(_stretches(batch.select(columns), name, episode))
                batches += found
                size += sum(batch.nbytes for batch in found)
                if size > MAX_BYTES:
                    raise Unreadable(name, f"more than {MAX_BYTES:,} bytes of one episode")
            if not batches:
                raise Unreadable(name, "holds no such rows")
            table = pa.Table.from_batches(batches).combine_chunks()
            table.validate(full=True)
            return table
    except (pa.ArrowException, *READ_ERRORS, TypeError, IndexError, OverflowError) as error:
        raise Unreadable(name, f"no whole Parquet file ({error})") from None


def _stretches(batch, name: str, episode: int | None) -> Iterator[Any]:
    """The rows of an episode, as slices: Arrow cannot pick single ones of every type."""
    if episode is None:
        yield batch
        return
    indices, _ = _flat(batch.column("episode_index"), "episode_index", name)
    if len(indices) != len(batch):
        raise Unreadable(name, "episode_index is no number per row")
    mine = np.asarray(indices.to_numpy(zero_copy_only=False) == episode, np.int8)
    edges = np.flatnonzero(np.diff(mine, prepend=0, append=0))
    for start, stop in edges.reshape(-1, 2).tolist():
        yield batch.slice(start, stop - start)
    if not len(edges):
        yield batch.slice(0, 0)


def _may_hold(metadata, group: int, episode: int | None) -> bool:
    """Whether a group of rows can have some of an episode; raises ValueError for absurd sizes."""
    group = metadata.row_group(group)
    chunks = [group.column(i) for i in range(group.num_columns)]
    if max((chunk.num_values for chunk in chunks), default=0) > MAX_BYTES // 8:
        raise ValueError("absurd size")
    for chunk in chunks:
        statistics = chunk.statistics
        if chunk.path_in_schema == "episode_index" and statistics and statistics.has_min_max:
            return episode is None or statistics.min <= episode <= statistics.max
    return True


def column(table, key: str, where: str, width: int | None = None) -> np.ndarray:
    """A column of numbers, or of equally long lists of them, as float32 `[n, width]`."""
    types = needs("pyarrow", "LeRobot data").types
    count, values = len(table), table.column(key).combine_chunks()
    values, holes = _flat(values, key, where)
    if holes:
        raise Unreadable(where, f"{key} has rows without numbers")
    kind = values.type
    if not (types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind)):
        raise Unreadable(where, f"{key} holds {kind}; numbers expected")
    if not count or not len(values) or len(values) % count:
        raise Unreadable(where, f"{key} has rows without numbers")
    rows = values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(count, -1)
    if width not in (None, rows.shape[1]):
        raise Unreadable(where, f"{key} has {rows.shape[1]} numbers per row; {width} expected")
    if not np.isfinite(rows).all():
        raise Unreadable(where, f"{key} holds a number that is not finite")
    return rows


def _flat(values, key: str, where: str) -> tuple[Any, bool]:
    """What lies in an array's lists, of whatever kind an engine wrote, within each other; and
    whether anything is null. Raises Unreadable when lists differ in length."""
    pc = needs("pyarrow.compute", "LeRobot data")
    types = needs("pyarrow", "LeRobot data").types
    kinds = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    is_list = [getattr(types, f"is_{kind}") for kind in kinds]
    holes = False
    for _ in range(8):
        holes = holes or values.null_count > 0
        if hasattr(values, "storage"):  # of an extension, a tensor for example
            values = values.storage
        elif types.is_dictionary(values.type):
            values = values.dictionary_decode()
        elif any(is_(values.type) for is_ in is_list):
            if len(pc.unique(pc.list_value_length(values))) > 1:
                missing = "rows without numbers" if holes else "rows of different length"
                raise Unreadable(where, f"{key} has {missing}")
            values = values.flatten()
        else:
            break
    return values, holes


def plain(value: Any) -> Any:
    """A number of a table of another engine: out of lists of one, and whole if it can be."""
    while isinstance(value, list) and len(value) == 1:
        (value,) = value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def encoded(column, where: str) -> list[bytes]:
    """Encoded pictures of a column of {bytes, path}."""
    files = [
        entry["bytes"] if isinstance(entry, dict) and "bytes" in entry else entry
        for entry in map(plain, column.to_pylist())
    ]
    if not all(isinstance(file, bytes) for file in files):
        raise Unreadable(where, "a row has no picture")
    return files

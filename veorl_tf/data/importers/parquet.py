"""Parquet tables of strangers, by pyarrow (requirements-import.txt)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from veorl_tf.core.arrays import READ_ERRORS
from veorl_tf.data.importers.base import MAX_BYTES, Unreadable, needs

BATCH = 64  # rows read in one go


def read(path: Path, name: str, columns: list[str], episode: int | None = None) -> Any:
    """A Parquet file's rows, of one episode or all, as a pyarrow.Table. Read in pieces, so that a
    small file cannot become endless rows. Raises Unreadable."""
    pq, pa = (needs(package, "LeRobot data") for package in ("pyarrow.parquet", "pyarrow"))
    batches, size = [], 0
    try:
        with pq.ParquetFile(str(path), page_checksum_verification=True) as file:
            for column in columns:
                if file.schema_arrow.names.count(column) != 1:
                    raise Unreadable(name, f"column {column} is missing")
            groups = [g for g in range(file.num_row_groups) if _may_hold(file.metadata, g, episode)]
            for batch in file.iter_batches(BATCH, groups, columns, use_threads=False):
                batch = batch.select(columns)
                if episode is not None:
                    indices = batch.column("episode_index").to_numpy(zero_copy_only=False)
                    batch = batch.filter(pa.array(indices == episode))
                batches.append(batch)
                size += batch.nbytes
                if size > MAX_BYTES:
                    raise Unreadable(name, f"more than {MAX_BYTES:,} bytes of one episode")
            if not batches:
                raise Unreadable(name, "holds no such rows")
            table = pa.Table.from_batches(batches).combine_chunks()
            table.validate(full=True)
            return table
    except (pa.ArrowException, *READ_ERRORS, TypeError, IndexError, OverflowError) as error:
        raise Unreadable(name, f"no whole Parquet file ({error})") from None


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
    lists = 0
    while lists < 8 and any(is_(values.type) for is_ in (types.is_list, types.is_fixed_size_list)):
        if values.null_count:
            raise Unreadable(where, f"{key} has rows without numbers")
        if types.is_list(values.type) and len({*np.diff(values.offsets.to_numpy())}) > 1:
            raise Unreadable(where, f"{key} has rows of different length")
        values, lists = values.flatten(), lists + 1
    kind = values.type
    if not (types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind)):
        raise Unreadable(where, f"{key} holds {kind}; numbers expected")
    if values.null_count or not count or not len(values) or len(values) % count:
        raise Unreadable(where, f"{key} has rows without numbers")
    rows = values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(count, -1)
    if width not in (None, rows.shape[1]):
        raise Unreadable(where, f"{key} has {rows.shape[1]} numbers per row; {width} expected")
    if not np.isfinite(rows).all():
        raise Unreadable(where, f"{key} holds a number that is not finite")
    return rows


def encoded(column, where: str) -> list[bytes]:
    """Encoded pictures of a column of {bytes, path}."""
    files = [
        entry["bytes"] if isinstance(entry, dict) and "bytes" in entry else entry
        for entry in column.to_pylist()
    ]
    if not all(isinstance(file, bytes) for file in files):
        raise Unreadable(where, "a row has no picture")
    return files

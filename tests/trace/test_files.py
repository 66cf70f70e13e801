"""Trace files: whole or not there, round trip, what is refused, and that others can read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import opd_probe
from opd_probe.errors import MissingError, OpdProbeWarning, OutputError, TraceError
from opd_probe.trace import Trace, TraceSpool, parquet, read_trace, rollout_table, write_trace
from opd_probe.trace.parquet import VERSION_KEY
from opd_probe.trace.schema import (
    FORMAT_VERSION,
    OPTIONAL_COLUMNS,
    ROLLOUT_COLUMNS,
    STATE_COLUMN,
    STATE_COLUMNS,
    array_columns,
)
from tests.samples import grouped_trace

ROLLOUTS = [
    {"prompt_id": "a", "n_states": 5, "step": 20, "prompt_length": 3, "finish_reason": "stop", "answer": "7"},
    {"prompt_id": "a", "n_states": 0, "skipped": "empty response"},
    {"prompt_id": "b", "n_states": 1, "score": -0.5},
    {"prompt_id": "c", "n_states": 30, "finish_reason": "length", "score": float("nan")},
]


def small_trace(**options: Any) -> Trace:
    return grouped_trace(ROLLOUTS, **options)


def same(left: Trace, right: Trace) -> None:
    assert set(left.columns) == set(right.columns)
    for name in left.columns:
        assert left.column(name).dtype == right.column(name).dtype, name
        np.testing.assert_array_equal(left.column(name), right.column(name), err_msg=name)
    assert str(left.rollouts.to_pylist()) == str(right.rollouts.to_pylist())
    assert left.rollouts.schema == right.rollouts.schema
    assert left.provenance == right.provenance


@pytest.mark.parametrize("jsd", [True, False])
def test_round_trip(tmp_path: Path, jsd: bool) -> None:
    trace = small_trace(jsd=jsd)
    path = tmp_path / "deep" / "trace.parquet"
    stored = trace.save(path)
    assert stored.path == path
    assert trace.path is None
    same(stored, trace)
    same(read_trace(str(path)), trace)
    assert (len(stored), stored.n_states, stored.K, stored.vocabulary_size) == (36, 36, 8, 40)
    assert [entry.name for entry in path.parent.iterdir()] == ["trace.parquet"]


@pytest.mark.parametrize("size", [1, 3, 5, 6, 36, 1000])
@pytest.mark.parametrize("on_disk", [False, True])
def test_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, on_disk: bool) -> None:
    """Blocks cross the borders of row groups and of rollouts."""
    monkeypatch.setattr(parquet, "ROW_GROUP", 7)
    trace = small_trace()
    if on_disk:
        trace.save(tmp_path / "t.parquet")
        assert pq.ParquetFile(tmp_path / "t.parquet").num_row_groups > 3
    source = read_trace(tmp_path / "t.parquet") if on_disk else trace
    blocks = list(source.blocks(["position", "student_top_ids"], size))
    assert all(0 < len(block["position"]) <= size for block in blocks)
    for name in ("position", "student_top_ids"):
        np.testing.assert_array_equal(np.concatenate([block[name] for block in blocks]), trace.column(name))
    rollout = np.concatenate([block["rollout"] for block in blocks])
    assert rollout.tolist() == [0] * 5 + [2] + [3] * 30


def test_metrics_of_a_file_with_many_row_groups(tmp_path: Path) -> None:
    trace = small_trace()
    write_trace(
        tmp_path / "t.parquet",
        trace.blocks(trace.columns, 4),
        trace.columns,
        trace.rollouts,
        trace.provenance,
    )
    stored = read_trace(tmp_path / "t.parquet")
    left, right = opd_probe.state_metrics(trace, 5), opd_probe.state_metrics(stored, 5)
    assert left["rollout_id"].tolist() == right["rollout_id"].tolist()
    for name in left.columns[2:]:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def test_an_unknown_column() -> None:
    with pytest.raises(TraceError, match="no column 'nothing'; it has position, token_id"):
        small_trace().column("nothing")


def test_columns_are_declared_and_typed(tmp_path: Path) -> None:
    for column in (*STATE_COLUMNS, *ROLLOUT_COLUMNS):
        assert column.meaning, column.name
    names = [column.name for column in STATE_COLUMNS]
    assert len(set(names)) == len(names)
    assert OPTIONAL_COLUMNS == ("sampler_logprob", "jsd")
    small_trace().save(tmp_path / "t.parquet")
    schema = pq.read_schema(tmp_path / "t.parquet")
    assert set(schema.names) == {column.name for column in STATE_COLUMNS if column.name != "sampler_logprob"}
    for field in schema:
        column = STATE_COLUMN[field.name]
        if column.name == "rollout_id":
            assert field.type.value_type == pa.string()
            continue
        assert not field.nullable
        kind = field.type
        if column.shape == "top":
            assert kind.list_size == 8
            kind = kind.value_type
        assert str(kind) == {"int32": "int32", "float32": "float"}[column.dtype], column.name
    table = rollout_table([])
    assert table.column_names == [column.name for column in ROLLOUT_COLUMNS]


def test_pyarrow_alone_reads_it(tmp_path: Path) -> None:
    trace = small_trace()
    trace.save(tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.column("rollout_id").to_pylist() == ["r0"] * 5 + ["r2"] + ["r3"] * 30
    assert table.column("student_top_ids").to_pylist() == trace.column("student_top_ids").tolist()
    assert table.column("reverse_kl").to_pylist() == trace.column("reverse_kl").tolist()


class TestRefused:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(MissingError, match="no such file") as caught:
            read_trace(tmp_path / "t.parquet")
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)

    @pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
    def test_truncated(self, tmp_path: Path, keep: float) -> None:
        path = tmp_path / "t.parquet"
        small_trace().save(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])
        with pytest.raises(TraceError, match="not a whole Parquet file") as caught:
            read_trace(path)
        assert "\n" not in str(caught.value)

    def test_another_parquet_file(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
        with pytest.raises(TraceError, match="not one of opd-probe's traces"):
            read_trace(tmp_path / "t.parquet")

    def test_unknown_version(self, tmp_path: Path) -> None:
        path = tmp_path / "t.parquet"
        small_trace().save(path)
        table = pq.read_table(path)
        metadata = {**table.schema.metadata, VERSION_KEY: b"99"}
        pq.write_table(table.replace_schema_metadata(metadata), path)
        with pytest.raises(
            TraceError, match=f"format version 99, this release reads version {FORMAT_VERSION}"
        ) as caught:
            read_trace(path)
        assert "\n" not in str(caught.value)


class TestAtomic:
    def test_an_exception_between_blocks_leaves_nothing(self, tmp_path: Path) -> None:
        trace = small_trace()

        def blocks() -> Iterator[dict[str, Any]]:
            yield from list(trace.blocks(trace.columns, 10))[:2]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_trace(tmp_path / "t.parquet", blocks(), trace.columns, trace.rollouts, trace.provenance)
        assert list(tmp_path.iterdir()) == []

    def test_a_failed_write_keeps_the_file_that_was_there(self, tmp_path: Path) -> None:
        trace = small_trace()
        trace.save(tmp_path / "t.parquet")
        before = (tmp_path / "t.parquet").read_bytes()

        def blocks() -> Iterator[dict[str, Any]]:
            yield next(trace.blocks(trace.columns, 10))
            raise OSError(28, "No space left on device")

        with pytest.raises(OutputError, match="No space left on device") as caught:
            write_trace(tmp_path / "t.parquet", blocks(), trace.columns, trace.rollouts, trace.provenance)
        assert "\n" not in str(caught.value)
        assert [entry.name for entry in tmp_path.iterdir()] == ["t.parquet"]
        assert (tmp_path / "t.parquet").read_bytes() == before

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match="cannot be written"):
            small_trace().save(tmp_path / "file" / "t.parquet")
        (tmp_path / "folder").mkdir()
        with pytest.raises(OutputError, match="cannot be written"):
            small_trace().save(tmp_path / "folder")
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


class TestSpool:
    counts = tuple(int(str(row["n_states"])) for row in ROLLOUTS)
    columns = array_columns(jsd=True, sampler=False)

    def spool(self, directory: Path | None = None, key: str = "a") -> TraceSpool:
        return TraceSpool(self.counts, self.columns, 8, directory, key)

    @staticmethod
    def rows(trace: Trace, index: int) -> dict[str, Any]:
        start, stop = trace.rollout_offsets[index : index + 2]
        return {name: trace.column(name)[start:stop] for name in trace.columns}

    @pytest.mark.parametrize("on_disk", [False, True])
    def test_out_of_order(self, tmp_path: Path, on_disk: bool) -> None:
        trace = small_trace()
        spool = self.spool(tmp_path / "spool" if on_disk else None)
        for index in (3, 0, 2):
            spool.put(index, self.rows(trace, index))
        path = tmp_path / "t.parquet" if on_disk else None
        same(spool.finish(trace.rollouts, trace.provenance, path), trace)
        assert not (tmp_path / "spool").exists()

    def test_unfinished(self) -> None:
        trace = small_trace()
        spool = self.spool()
        spool.put(3, self.rows(trace, 3))
        with pytest.raises(RuntimeError, match="2 rollouts"):
            spool.finish(trace.rollouts, trace.provenance, None)

    def test_goes_on_with_the_same_key(self, tmp_path: Path) -> None:
        trace = small_trace()
        self.spool(tmp_path / "spool").put(3, self.rows(trace, 3))
        again = self.spool(tmp_path / "spool")
        assert again.done.tolist() == [False, True, False, True]
        for index in (0, 2):
            again.put(index, self.rows(trace, index))
        same(again.finish(trace.rollouts, trace.provenance, tmp_path / "t.parquet"), trace)

    def test_starts_afresh_with_another_key(self, tmp_path: Path) -> None:
        self.spool(tmp_path / "spool").put(3, self.rows(small_trace(), 3))
        again = self.spool(tmp_path / "spool", key="b")
        assert again.done.tolist() == [False, True, False, False]
        assert not again.arrays["position"].any()

    def test_a_spool_that_was_never_whole_is_not_gone_on_with(self, tmp_path: Path) -> None:
        self.spool(tmp_path / "spool").put(3, self.rows(small_trace(), 3))
        (tmp_path / "spool" / "key").unlink()
        assert self.spool(tmp_path / "spool").done.tolist() == [False, True, False, False]

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match="cannot be written"):
            self.spool(tmp_path / "file" / "spool")

    def begun(self, directory: Path) -> Trace:
        """A spool with two of its three rollouts done, and the trace that it is to become."""
        trace = small_trace()
        spool = self.spool(directory)
        for index in (0, 3):
            spool.put(index, self.rows(trace, index))
        return trace

    def ended(self, directory: Path, trace: Trace) -> list[bool]:
        """Goes on with a spool to the end, which must be the trace; which rollouts were done already."""
        spool = self.spool(directory)
        done: list[bool] = spool.done.tolist()
        for index in np.flatnonzero(~spool.done):
            spool.put(int(index), self.rows(trace, int(index)))
        same(spool.finish(trace.rollouts, trace.provenance, directory.with_name("t.parquet")), trace)
        return done

    @pytest.mark.parametrize("name", ["position", "student_top_ids", "done", "done_digests"])
    @pytest.mark.parametrize("damage", ["short", "empty", "gone", "long", "other shape", "pickle"])
    def test_files_that_do_not_fit_are_done_again(self, tmp_path: Path, name: str, damage: str) -> None:
        trace = self.begun(tmp_path / "spool")
        path = tmp_path / "spool" / f"{name}.npy"
        content = path.read_bytes()
        if damage == "gone":
            path.unlink()
        elif damage == "other shape":
            np.save(path, np.zeros((1, 2), dtype=np.int32))
        elif damage == "pickle":
            np.save(path, np.array([{}], dtype=object), allow_pickle=True)
        else:
            path.write_bytes({"short": content[:-1], "empty": b"", "long": content + b"1"}[damage])
        with pytest.warns(OpdProbeWarning, match=rf"damaged .*{name}.*started afresh"):
            assert self.ended(tmp_path / "spool", trace) == [False, True, False, False]

    def test_a_key_that_is_no_text(self, tmp_path: Path) -> None:
        trace = self.begun(tmp_path / "spool")
        (tmp_path / "spool" / "key").write_bytes(b"\xff\xfe")
        assert self.ended(tmp_path / "spool", trace) == [False, True, False, False]

    @pytest.mark.parametrize("name", ["position", "teacher_top_logprobs", "jsd", "done", "done_digests"])
    def test_a_flipped_bit_costs_its_rollout_and_no_other(self, tmp_path: Path, name: str) -> None:
        trace = self.begun(tmp_path / "spool")
        path = tmp_path / "spool" / f"{name}.npy"
        content = bytearray(path.read_bytes())
        content[-1] ^= 2  # of the last rollout
        path.write_bytes(bytes(content))
        expected = [True, True, False, name == "done"]  # a flag of 3 says what a flag of 1 says
        if name == "done":
            assert self.ended(tmp_path / "spool", trace) == expected
        else:
            with pytest.warns(OpdProbeWarning, match="1 finished rollouts in it are damaged"):
                assert self.ended(tmp_path / "spool", trace) == expected

    def test_a_flag_without_its_rollout(self, tmp_path: Path) -> None:
        trace = self.begun(tmp_path / "spool")
        path = tmp_path / "spool" / "done.npy"
        path.write_bytes(path.read_bytes()[:-2] + b"\1\1")
        with pytest.warns(OpdProbeWarning, match="damaged"):
            assert self.ended(tmp_path / "spool", trace) == [True, True, False, True]

    def test_answers_are_checked_too(self, tmp_path: Path) -> None:
        trace, names = small_trace(), ["teacher_top_ids", "teacher_logprob"]

        def spool() -> TraceSpool:
            return TraceSpool(self.counts, self.columns, 8, tmp_path / "spool", "a", answers=names)

        first = spool()
        for index in (0, 2, 3):
            first.put_answer(index, self.rows(trace, index))
        first.put(3, self.rows(trace, 3))
        assert spool().answered.tolist() == [True, False, True, True]
        path = tmp_path / "spool" / "teacher_logprob.npy"
        content = bytearray(path.read_bytes())
        content[-4 * 36] ^= 1
        path.write_bytes(bytes(content))
        with pytest.warns(OpdProbeWarning, match="1 finished rollouts"):
            again = spool()
        assert again.answered.tolist() == [False, False, True, True]
        assert again.done.tolist() == [False, True, False, True]

    def test_the_room_of_the_work_and_of_the_trace_is_taken_first(self, tmp_path: Path) -> None:
        """As blocks of the disk, not as a length alone: a map over a hole crashes when the disk is full."""
        counts = [2000]
        TraceSpool(counts, self.columns, 8, tmp_path / "spool", "a")
        size = 2000 * sum(4 * (8 if column.shape == "top" else 1) for column in self.columns)
        files = [path.stat() for path in (tmp_path / "spool").iterdir()]
        assert sum(512 * one.st_blocks for one in files) >= 2 * size

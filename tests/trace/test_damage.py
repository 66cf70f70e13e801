"""A trace whose bits changed since it was written is refused in one line, never read as other numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from opd_probe.errors import TraceError
from opd_probe.trace import parquet, read_trace
from tests.trace.test_files import same, small_trace

FROZEN = Path(__file__).parent / "frozen"


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def refusal(path: Path) -> str | None:
    """What is said of a trace when all of it is read; None: it can be read."""
    try:
        trace = read_trace(path)
        for name in trace.columns:
            trace.column(name)
    except TraceError as error:
        return str(error)
    return None


def test_no_flipped_bit_of_any_byte_is_read_as_other_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP", 16)
    path, trace = tmp_path / "t.parquet", small_trace()
    trace.save(path)
    content, generator = path.read_bytes(), np.random.default_rng(0)
    silent = 0
    for place in range(0, len(content), 23):
        path.write_bytes(flipped(content, 8 * place + int(generator.integers(8))))
        said = refusal(path)
        if said is None:
            same(read_trace(path), trace)
            silent += 1
        else:
            assert "\n" not in said
            assert str(path) in said
    assert silent < 5  # in the name of the digest, where nothing is lost


@pytest.mark.parametrize("name", ["pair", "served", "scores"])
def test_without_a_digest_damage_is_one_line_or_another_number(tmp_path: Path, name: str) -> None:
    content, generator = (FROZEN / f"{name}.parquet").read_bytes(), np.random.default_rng(1)
    path, refused = tmp_path / "t.parquet", 0
    for bit in generator.integers(0, 8 * len(content), 150):
        path.write_bytes(flipped(content, int(bit)))
        said = refusal(path)
        assert "\n" not in (said or "")
        refused += said is not None
    assert refused


def test_bits_that_change_behind_an_open_trace(tmp_path: Path) -> None:
    """The checksums of Parquet's pages are written, and compared whenever a column is read."""
    path = tmp_path / "t.parquet"
    trace = small_trace().save(path)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(3)
    end = chunk.data_page_offset + chunk.total_compressed_size
    path.write_bytes(flipped(path.read_bytes(), 8 * (end - 10)))
    with pytest.raises(TraceError, match=r"t\.parquet") as caught:
        trace.column(chunk.path_in_schema.split(".")[0])
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(TraceError, match="no longer there"):
        trace.column("position")


def test_a_block_of_zeros(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    small_trace().save(path)
    content = path.read_bytes()
    for start in range(0, len(content), 512):
        path.write_bytes(content[:start] + bytes(len(content[start : start + 512])) + content[start + 512 :])
        assert refusal(path)


def test_a_colon_in_a_path_is_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trace = small_trace()
    for name in ("exp:1/t.parquet", "qwen3:8b/try/t.parquet", "file:t.parquet", "s3:/b/t.parquet"):
        same(trace.save(name), trace)
        same(read_trace(name), trace)

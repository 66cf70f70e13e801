"""Files as the values in them, and whole files again of other values: well formed, and meaning something else."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from numpy.typing import NDArray

from tests.fuzz import values
from tests.fuzz.trees import Odd, Tree, damaged_file, framed, with_digest

Maker = Callable[[Random, bytes], bytes]


def rewritten(random: Random, tree: Tree) -> Tree:
    """A tree with one or two files that hold other values in the same container."""
    kept = dict(tree)
    for _ in range(random.choice((1, 1, 2))):
        name = random.choice(list(kept))
        held = kept[name]
        if not isinstance(held, Odd):
            kept[name] = rewritten_file(random, name, held)
    return kept


def rewritten_file(random: Random, name: str, content: bytes) -> bytes:
    """A file of other values; as it was damaged where the old one cannot be read or the new ones be written."""
    for pattern, maker in _MAKERS:
        if re.search(pattern, name):
            try:
                return maker(random, content)
            except Exception:  # writers of all kinds refuse values of all kinds
                break
    return damaged_file(random, name, content, [])


def _another(random: Random, given: Any) -> Any:
    """Mostly a changed value; now and then one made up of the same names."""
    if random.random() < 0.85:
        return values.changed(random, given)
    return values.value(random, 3, values.names_in(given))


def _json(random: Random, content: bytes) -> bytes:
    return values.as_json(random, _another(random, json.loads(content)))


def _lines(random: Random, content: bytes) -> bytes:
    rows = [json.loads(line) for line in content.splitlines() if line.strip()]
    made = values.changed(random, rows, 1) if random.random() < 0.2 else rows
    made = made if isinstance(made, list) else [made]
    chosen = random.randrange(max(len(made), 1))
    if made:
        made[chosen] = _another(random, made[chosen])
    return b"".join(values.as_json(random, row) + b"\n" for row in made)


def _yaml(random: Random, content: bytes) -> bytes:
    made = _another(random, yaml.safe_load(content))
    try:
        text = yaml.safe_dump(made, allow_unicode=random.random() < 0.5)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    tricks = random.random()
    if tricks < 0.03:
        text = "a: &a [x, x]\nb: &b [*a, *a]\nteacher: [*b, *b]\n" + text
    elif tricks < 0.06:
        text += random.choice(
            ("x: !!python/name:os.system\n", "x: 2001-01-01\n", "? [1]\n: 2\n", "- x\n", "<<: {a: 1}\n", "\tx: 1\n")
        )
    return text.encode("utf-8", "surrogatepass")


def _csv(random: Random, content: bytes) -> bytes:
    rows = [line.split(",") for line in content.decode().splitlines()]
    made = values.changed(random, rows)
    return "\n".join(
        ",".join(str(cell) for cell in row) if isinstance(row, list) else str(row)
        for row in (made if isinstance(made, list) else [made])
    ).encode("utf-8", "surrogatepass")


def _parquet(random: Random, content: bytes) -> bytes:
    table = pq.read_table(io.BytesIO(content))
    made = io.BytesIO()
    pq.write_table(_other_table(random, table), made, write_page_checksum=random.random() < 0.5)
    return with_digest(made.getvalue())


def _arrow(random: Random, content: bytes) -> bytes:
    table = pa.ipc.open_stream(content).read_all()
    made = io.BytesIO()
    other = _other_table(random, table)
    opened = pa.ipc.new_stream if random.random() < 0.5 else pa.ipc.new_file
    with opened(made, other.schema) as writer:
        writer.write_table(other)
    return made.getvalue()


def _other_table(random: Random, table: pa.Table) -> pa.Table:
    """A table with another column, type, or metadata."""
    metadata = dict(table.schema.metadata or {})
    if metadata and random.random() < 0.5:
        key = random.choice(list(metadata))
        try:
            metadata[key] = values.as_json(random, _another(random, json.loads(metadata[key])))
        except ValueError:
            metadata[key] = damaged_file(random, "", metadata[key], [])
        return table.replace_schema_metadata(metadata)
    place = random.randrange(table.num_columns)
    name, column = table.column_names[place], table.column(place)
    how = random.randrange(6)
    if how == 0:
        other = table.remove_column(place)
    elif how == 1:
        other = table.set_column(place, random.choice([*table.column_names, *values.TEXTS[:40]]), column)
    elif how == 2:
        other = table.set_column(place, name, _odd_column(random, table.num_rows))
    elif how == 3:
        other = table.slice(random.choice((0, 1, table.num_rows)), random.choice((0, 1, table.num_rows)))
    else:
        rows = values.changed(random, column.to_pylist())
        fitting = (rows if isinstance(rows, list) else [rows])[: table.num_rows]
        other = table.set_column(place, name, pa.array(fitting + [None] * (table.num_rows - len(fitting))))
    return other.replace_schema_metadata(metadata or None)


def _odd_column(random: Random, rows: int) -> pa.Array:
    """A column of a type that no reader asks for."""
    kind = random.choice(
        (pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.date32(), pa.timestamp("ns"), pa.duration("s"),
         pa.binary(), pa.large_string(), pa.decimal128(20, 2), pa.list_(pa.float64()), pa.struct([("x", pa.int32())]),
         pa.map_(pa.string(), pa.int64()), pa.list_(pa.int32(), 3), pa.dictionary(pa.int8(), pa.string()), pa.time64("us"))  # noqa: E501
    )  # fmt: skip
    return pa.nulls(rows, kind)


def _torch(random: Random, content: bytes) -> bytes:
    held = torch.load(io.BytesIO(content), weights_only=False)
    made = io.BytesIO()
    torch.save(_with_tensors(random, _another(random, _without_tensors(held)), held), made)
    return made.getvalue()


class _Kept:
    """Stands for an object that no JSON value is."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __deepcopy__(self, memo: Any) -> _Kept:
        return self


def _without_tensors(held: Any) -> Any:
    if isinstance(held, dict):
        return {key: _without_tensors(one) for key, one in held.items()}
    if isinstance(held, (list, tuple)):
        return [_without_tensors(one) for one in held]
    return held if isinstance(held, (str, int, float, type(None))) else _Kept(held)


def _with_tensors(random: Random, held: Any, whole: Any) -> Any:
    if isinstance(held, dict):
        return {key: _with_tensors(random, one, whole) for key, one in held.items()}
    if isinstance(held, list):
        return [_with_tensors(random, one, whole) for one in held]
    if isinstance(held, _Kept):
        return _odd_tensor(random) if random.random() < 0.3 else held.held
    return held


def _odd_tensor(random: Random) -> Any:
    made: tuple[Callable[[], Any], ...] = (
        lambda: torch.zeros(0),
        lambda: torch.tensor(3.5),
        lambda: torch.zeros(2, 3, 4),
        lambda: torch.zeros(3, dtype=torch.complex64),
        lambda: torch.zeros(3, dtype=torch.bool),
        lambda: torch.zeros(3, dtype=torch.bfloat16),
        lambda: torch.tensor([float("nan"), float("inf")]),
        lambda: torch.tensor([2**62, -1]),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.zeros(1).expand(5),
        lambda: torch.zeros(3, device="meta"),
        lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
        lambda: np.array(["a", "b"]),
        lambda: np.zeros((2, 2), dtype="datetime64[s]"),
        lambda: np.float64("nan"),
        lambda: {1, 2},
        lambda: b"bytes",
    )
    return random.choice(made)()


def _safetensors(random: Random, content: bytes) -> bytes:
    """Another header before the same data."""
    size = int.from_bytes(content[:8], "little")
    header = values.as_json(random, values.changed(random, json.loads(content[8 : 8 + size])))
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def _npy(random: Random, content: bytes) -> bytes:
    held: NDArray[Any] = np.load(io.BytesIO(content))
    other: tuple[Callable[[], Any], ...] = (
        lambda: held.astype(random.choice(("float64", "int8", "bool", "complex64", "U3", "S2", ">f4"))),
        lambda: held.reshape(-1),
        lambda: held[: len(held) // 2],
        lambda: np.concatenate([held, held]),
        lambda: held.T.copy(order="F"),
        lambda: np.array([None, {"x": 1}], dtype=object),
        lambda: np.zeros(3, dtype=[("a", "i4"), ("b", "f8")]),
        lambda: ~held if held.dtype == bool else held + 1,
    )
    made = io.BytesIO()
    np.save(made, random.choice(other)())
    return made.getvalue()


def _events(random: Random, content: bytes) -> bytes:
    """Events of odd tags, steps and values, in the wire format of protocol buffers."""
    del content
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    records = [Event(file_version="brain.Event:2", wall_time=1.0)]
    for _ in range(random.randint(0, 4)):
        tag = random.choice(("train/loss", "train/reward", "loss", random.choice(values.TEXTS)))
        number = random.choice([one for one in values.NUMBERS if isinstance(one, float) and abs(one) != 1e308])
        one = Summary.Value(tag=tag.encode("utf-8", "ignore").decode(), simple_value=min(number, 1e38))
        step = random.choice((0, 1, 2, 3, 5, 8, -1, 2**62))
        records.append(Event(step=step, wall_time=random.choice((0.0, -1.0, 1e300)), summary=Summary(value=[one])))
    return b"".join(framed(record.SerializeToString()) for record in records)


_PIECES = (
    "{{ x }}", "{% if x %}", "{% endif %}", "{% for m in messages %}", "{% endfor %}", "{{ messages[0]['content'] }}",
    "{{ messages | tojson }}", "{{ raise_exception('no') }}", "{{ ''.__class__ }}", "{% set x = [1] %}", "{{ 1 / 0 }}",
    "{{ messages[99].x.y }}", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{{ messages[0] + 1 }}", "{#", "{%",
    "{{ cycler.__init__.__globals__ }}", "{{ strftime_now('%Y') }}", "{% generation %}", "{% include 'x' %}", "\x1b[31m",  # noqa: E501
    "{{ messages.append(1) }}", "{{ 'x' | nothing }}", "{{ range(3) | list }}", "{{ eos_token * 2 }}", "{% break %}",
    "{{ '%s' % messages }}", "{{ '{0.__class__}'.format(1) }}", "\ud800", "<|assistant|>",
)  # fmt: skip


def _template(random: Random, content: bytes) -> bytes:
    text = content.decode()
    for _ in range(random.choice((1, 1, 2, 4))):
        place = random.randint(0, len(text))
        kept = place + random.choice((0, 0, 5, 30))
        text = text[:place] + random.choice(_PIECES) + text[kept:]
    return text.encode("utf-8", "surrogatepass")


_WORDS = (
    "step:",
    " - ",
    "actor/pg_loss:",
    "np.float64(",
    ")",
    "nan",
    "-",
    "1e999",
    "step:1",
    ":",
    "\x1b[3m",
    "0.5",
    "\n",
)


def _console(random: Random, content: bytes) -> bytes:
    parts = re.split(r"( - |\n|:)", content.decode())
    for _ in range(random.choice((1, 2, 5))):
        parts.insert(random.randint(0, len(parts)), random.choice((*_WORDS, str(values.scalar(random)))))
    return "".join(parts).encode("utf-8", "surrogatepass")


def _gguf(random: Random, content: bytes) -> bytes:
    """Other values of the keys and other shapes of the tensors, between the same magic and data."""
    at = [match.start() for match in re.finditer(rb"(llama|general|tokenizer|blk|token_embd)[.\w]*", content[:20_000])]
    if not at:
        raise ValueError("no keys")
    place = random.choice(at) + random.randint(-8, 60)
    size = random.choice((1, 4, 4, 8))
    number = random.choice((0, 1, 2, 4, 8, 9, 12, 2**31 - 1, 2**32 - 1, 2**63 - 1)) & (256**size - 1)
    return content[: max(place, 0)] + number.to_bytes(size, "little") + content[max(place, 0) + size :]


_MAKERS: tuple[tuple[str, Maker], ...] = (
    (r"tfevents", _events),
    (r"\.json$|/v1/models$|^v1/|version$|_info$", _json),
    (r"\.(jsonl|ndjson|partial)$", _lines),
    (r"\.ya?ml$", _yaml),
    (r"\.csv$", _csv),
    (r"\.parquet$", _parquet),
    (r"\.arrow$", _arrow),
    (r"\.pt$", _torch),
    (r"\.safetensors$", _safetensors),
    (r"\.npy$", _npy),
    (r"\.jinja$", _template),
    (r"\.(log|txt)$", _console),
    (r"\.gguf$", _gguf),
)
"""By file name, what makes a well-formed file of other values."""

"""Every column of a trace, declared once: the writer, the reader, the docs and the axis labels read this.

A trace holds what cannot be recovered later and nothing else. One row per student-visited state; one entry of
the rollout table per rollout, skipped ones included. ``K`` is the depth of the stored top lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FORMAT_VERSION = 1
"""Raised whenever the meaning or the layout of a column changes. A reader refuses versions it does not know."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the state table or of the rollout table.

    Attributes:
        name: the column's name in the Parquet file.
        dtype: ``"int32"``, ``"float32"``, ``"float64"``, ``"int64"`` or ``"string"``.
        shape: ``"state"`` for one value per row, ``"top"`` for a fixed-size list of K in rank order.
        unit: ``"nats"``, ``"probability"``, ``"tokens"`` or ``""``.
        range: the values that occur, in interval notation.
        meaning: one sentence.
        optional: whether a trace may lack the column.
    """

    name: str
    dtype: Literal["int32", "int64", "float32", "float64", "string"]
    shape: Literal["state", "top"]
    unit: str
    range: str
    meaning: str
    optional: bool = False


ROLLOUT_ID = Column("rollout_id", "string", "state", "", "", "the rollout that the state belongs to")

STATE_COLUMNS: tuple[Column, ...] = (
    ROLLOUT_ID,
    Column("position", "int32", "state", "tokens", "[0, T)", "0-based index in the response, masked tokens counted"),
    Column("token_id", "int32", "state", "", "[0, V)", "the token that the student sampled at this state"),
    Column(
        "student_top_ids",
        "int32",
        "top",
        "",
        "[-1, V)",
        "the student's K most probable tokens in rank order; ties go to the lower id; -1 where no token of probability "
        "above 0 is left",
    ),
    Column(
        "student_top_logprobs",
        "float32",
        "top",
        "nats",
        "[-inf, 0]",
        "the student's log-probabilities of student_top_ids; -inf where no token is left",
    ),
    Column(
        "teacher_logprobs_at_student_top",
        "float32",
        "top",
        "nats",
        "[-inf, 0]",
        "the teacher's log-probabilities of student_top_ids; NaN where the teacher did not tell, -inf where no token "
        "is left",
    ),
    Column(
        "teacher_top_ids",
        "int32",
        "top",
        "",
        "[-1, V)",
        "the teacher's K most probable tokens in rank order; ties go to the lower id; -1 where no token of probability "
        "above 0 is left, or a served teacher told no more",
    ),
    Column(
        "teacher_top_logprobs",
        "float32",
        "top",
        "nats",
        "[-inf, 0]",
        "the teacher's log-probabilities of teacher_top_ids; -inf where no token is left, NaN where a served teacher "
        "told no more",
    ),
    Column(
        "student_logprobs_at_teacher_top",
        "float32",
        "top",
        "nats",
        "[-inf, 0]",
        "the student's log-probabilities of teacher_top_ids; -inf where no token is left, NaN where a served teacher "
        "told no more",
    ),
    Column(
        "student_logprob",
        "float32",
        "state",
        "nats",
        "[-inf, 0]",
        "the student's log-probability of token_id; NaN when the token lies outside the shared vocabulary",
    ),
    Column(
        "teacher_logprob",
        "float32",
        "state",
        "nats",
        "[-inf, 0]",
        "the teacher's log-probability of token_id; NaN when the token lies outside the shared vocabulary, or a served "
        "teacher told none",
    ),
    Column(
        "sampler_logprob",
        "float32",
        "state",
        "nats",
        "[-inf, 0]",
        "the log-probability that the sampler itself reported for token_id",
        optional=True,
    ),
    Column(
        "student_entropy",
        "float32",
        "state",
        "nats",
        "[0, log V]",
        "entropy of the student's next-token distribution over the shared vocabulary",
    ),
    Column(
        "teacher_entropy",
        "float32",
        "state",
        "nats",
        "[0, log V]",
        "entropy of the teacher's next-token distribution over the shared vocabulary; NaN with a served teacher",
    ),
    Column(
        "reverse_kl",
        "float32",
        "state",
        "nats",
        "[0, inf]",
        "KL(student || teacher) over the shared vocabulary; NaN with a served teacher",
    ),
    Column(
        "forward_kl",
        "float32",
        "state",
        "nats",
        "[0, inf]",
        "KL(teacher || student) over the shared vocabulary; NaN with a served teacher",
    ),
    Column(
        "jsd",
        "float32",
        "state",
        "nats",
        "[0, log 2]",
        "Jensen-Shannon divergence over the shared vocabulary, when asked for; NaN with a served teacher",
        optional=True,
    ),
    Column(
        "student_mass_outside",
        "float32",
        "state",
        "probability",
        "[0, 1]",
        "the student's probability outside the shared vocabulary, before renormalisation",
    ),
    Column(
        "teacher_mass_outside",
        "float32",
        "state",
        "probability",
        "[0, 1]",
        "the teacher's probability outside the shared vocabulary, before renormalisation; NaN with a served teacher",
    ),
)

ROLLOUT_COLUMNS: tuple[Column, ...] = (
    Column("rollout_id", "string", "state", "", "", "unique within the trace"),
    Column("prompt_id", "string", "state", "", "", "the prompt, the unit of intervals"),
    Column("step", "int64", "state", "steps", "", "the training step that the rollout was sampled at"),
    Column("prompt_length", "int64", "state", "tokens", "", "tokens of the prompt"),
    Column(
        "teacher_prompt_length",
        "int64",
        "state",
        "tokens",
        "",
        "tokens of the teacher's prompt; null where the teacher read the student's",
        optional=True,
    ),
    Column("response_length", "int64", "state", "tokens", "", "tokens of the response, masked ones included"),
    Column("n_states", "int64", "state", "", "", "rows of the state table that belong to this rollout"),
    Column("finish_reason", "string", "state", "", "stop, length", "why the response ended, when known"),
    Column("answer", "string", "state", "", "", "the reference answer of the problem, when known"),
    Column("score", "float64", "state", "", "", "the grader's verdict or reward, when known"),
    Column(
        "token_source",
        "string",
        "state",
        "",
        "sampled_ids, retokenized",
        "whether the ids are what was sampled or were made from text",
    ),
    Column(
        "sampling",
        "string",
        "state",
        "",
        "",
        "temperature and truncation that it was sampled with, as far as its file says",
        optional=True,
    ),
    Column(
        "fields",
        "string",
        "state",
        "",
        "",
        "what else its file said of it in texts, numbers and truth values, as JSON; of objects under dotted names",
        optional=True,
    ),
    Column("skipped", "string", "state", "", "", "why the rollout has no states; null when it has"),
)

PROVENANCE: dict[str, tuple[type, ...]] = {
    "K": (int,),
    "temperature": (float, int),
    "jsd": (bool,),
    "vocabulary": (dict,),
    "vocabulary.size": (int,),
    "vocabulary.special_ids": (list, type(None)),
    "student": (dict,),
    "student.path": (str, type(None)),
    "student.step": (int, type(None)),
    "student.quantisation": (dict, type(None)),
    "teacher": (dict,),
    "teacher.path": (str, type(None)),
    "teacher.quantisation": (dict, type(None)),
    "teacher_prompt": (dict, type(None)),
    "labels": (dict,),
    "labels.run": (str,),
    "labels.step": (int, type(None)),
    "labels.teacher": (str,),
    "labels.directory": (str, type(None)),
    "fingerprint": (dict,),
    "ways": (dict, type(None)),
    "warnings": (list, type(None)),
    "stopped": (dict, type(None)),
    "stopped.level": (float,),
    "stopped.prompts": (int,),
    "stopped.states": (int,),
    "stopped.of_prompts": (int,),
    "stopped.of_states": (int,),
    "stopped.asked": (dict,),
    "order": (dict, type(None)),
    "order.seed": (int,),
    "order.looks": (list,),
}
"""What is read of a trace's provenance, as a path of keys, and the types that it may have where it is there."""

STOPPED = tuple(path.partition(".")[2] for path in PROVENANCE if path.startswith("stopped."))
"""What the provenance of a replay that stopped says of it, all of it."""

STATE_COLUMN: dict[str, Column] = {column.name: column for column in STATE_COLUMNS}
TOP_COLUMNS: tuple[str, ...] = tuple(c.name for c in STATE_COLUMNS if c.shape == "top")
OPTIONAL_COLUMNS: tuple[str, ...] = tuple(c.name for c in STATE_COLUMNS if c.optional)


def array_columns(*, jsd: bool, sampler: bool) -> tuple[Column, ...]:
    """The numeric state columns of a trace with or without the two optional ones, in file order."""
    left_out = {ROLLOUT_ID.name} | (set() if jsd else {"jsd"}) | (set() if sampler else {"sampler_logprob"})
    return tuple(column for column in STATE_COLUMNS if column.name not in left_out)

"""A trace from logits that are already at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from opd_probe.engine.provenance import software
from opd_probe.engine.scoring import Columns, VocabularyMap, default_chunk, score_logits
from opd_probe.engine.settings import check_temperature
from opd_probe.errors import InputError, LogitError
from opd_probe.trace import Trace, rollout_table
from opd_probe.trace.schema import FORMAT_VERSION, array_columns


def trace_logits(
    student_logits: ArrayLike | Tensor,
    teacher_logits: ArrayLike | Tensor,
    token_ids: ArrayLike | Tensor,
    k: int,
    jsd: bool = False,
    *,
    temperature: float = 1.0,
) -> Trace:
    """A trace of one rollout from both models' logits at its states.

    Without tokenizers the shared vocabulary is assumed to be the ids below the smaller width, and is recorded
    as assumed; both distributions are renormalised there.

    Args:
        student_logits: [T, V_student], row t scores the token at position t. Computed in float32.
        teacher_logits: [T, V_teacher].
        token_ids: int [T], the sampled tokens.
        k: the depth K of the stored top lists, capped at the shared vocabulary.
        jsd: also store the Jensen-Shannon divergence.
        temperature: both distributions are softmax(logits / temperature).

    Raises:
        InputError: shapes that do not fit, k < 1, or an id outside both vocabularies.
        LogitError: a logit is NaN or +inf; names the position.
    """
    student, teacher = _matrix("student_logits", student_logits), _matrix("teacher_logits", teacher_logits)
    tokens = _as_tensor(token_ids)
    if tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise InputError(f"token_ids: of type {tokens.dtype}; expected whole numbers")
    tokens = tokens.to(torch.int64)
    _check(student, teacher, tokens, k, temperature)
    shared = min(student.shape[1], teacher.shape[1])
    depth = min(k, shared)
    vocabulary = VocabularyMap(np.arange(shared), shared, student.device)
    parts: list[Columns] = []
    step = default_chunk(shared, student.device)
    for start in range(0, len(tokens), step):
        rows = slice(start, start + step)
        try:
            columns = score_logits(
                student[rows, :shared].float(),
                teacher[rows, :shared].float(),
                tokens[rows],
                depth,
                vocabulary=vocabulary,
                student_rest=student[rows, shared:],
                teacher_rest=teacher[rows, shared:],
                temperature=temperature,
                jsd=jsd,
            )
        except LogitError as error:
            raise LogitError(f"position {start + (error.row or 0)}: {error}; expected finite logits") from None
        parts.append(columns)
    names = [column.name for column in array_columns(jsd=jsd, sampler=False)]
    merged: dict[str, NDArray[Any]] = {n: np.concatenate([p[n] for p in parts]) for n in names if n != "position"}
    merged["position"] = np.arange(len(tokens), dtype=np.int32)
    provenance = {
        "format_version": FORMAT_VERSION,
        "K": depth,
        "temperature": temperature,
        "student": {"source": "logits", "width": int(student.shape[1])},
        "teacher": {"source": "logits", "width": int(teacher.shape[1])},
        "vocabulary": {"size": shared, "assumed": True},
        "labels": {"states": "unknown"},
        "software": software(),
    }
    row = {
        "rollout_id": "0",
        "prompt_id": "0",
        "response_length": len(tokens),
        "n_states": len(tokens),
        "token_source": "sampled_ids",
    }
    return Trace(rollout_table([row]), provenance, arrays={name: merged[name] for name in names})


def _as_tensor(values: ArrayLike | Tensor) -> Tensor:
    return values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def _matrix(name: str, values: ArrayLike | Tensor) -> Tensor:
    tensor = _as_tensor(values)
    if tensor.ndim != 2 or tensor.shape[0] == 0 or tensor.shape[1] == 0:
        raise InputError(f"{name}: shape {tuple(tensor.shape)}; expected [T, V] with at least one state")
    return tensor


def _check(student: Tensor, teacher: Tensor, tokens: Tensor, k: int, temperature: float) -> None:
    if len(student) != len(teacher) or tokens.shape != (len(student),):
        raise InputError(
            f"logits and token_ids: {len(student)}, {len(teacher)} and {tuple(tokens.shape)} states; "
            "expected the same number T"
        )
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"k = {k!r}: expected a whole number of at least 1")
    check_temperature(temperature)
    widest = max(student.shape[1], teacher.shape[1])
    if int(tokens.min()) < 0 or int(tokens.max()) >= widest:
        bad = int(tokens.min()) if int(tokens.min()) < 0 else int(tokens.max())
        raise InputError(f"token_ids: id {bad} is outside the vocabulary of {widest} ids")

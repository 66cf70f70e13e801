"""A trace from logits that are already at hand."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from opd_probe.engine.scoring import Columns, VocabularyMap, default_chunk, score_logits
from opd_probe.engine.settings import check_temperature
from opd_probe.errors import InputError, LogitError, OpdProbeWarning
from opd_probe.stats.rounding import is_narrow, rounding_words
from opd_probe.trace import Trace, rollout_table
from opd_probe.trace.schema import FORMAT_VERSION, array_columns
from opd_probe.versions import software


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
        student_logits: [T, V_student], row t scores the token at position t, in any floating type. Computed in float32;
            what a narrower type has rounded stays rounded, and is said with its size.
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
    _warn_of_rounding(student, teacher, parts)
    names = [column.name for column in array_columns(jsd=jsd, sampler=False)]
    merged: dict[str, NDArray[Any]] = {n: np.concatenate([p[n] for p in parts]) for n in names if n != "position"}
    merged["position"] = np.arange(len(tokens), dtype=np.int32)
    provenance = {
        "format_version": FORMAT_VERSION,
        "K": depth,
        "temperature": temperature,
        "student": {"source": "logits", "width": int(student.shape[1]), "dtype": _type_name(student)},
        "teacher": {"source": "logits", "width": int(teacher.shape[1]), "dtype": _type_name(teacher)},
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


def _warn_of_rounding(student: Tensor, teacher: Tensor, parts: Sequence[Columns]) -> None:
    """Say how much logits in a narrow type were rounded by, at the ids of the top lists."""
    found = []
    for side, logits in (("student", student), ("teacher", teacher)):
        if is_narrow(logits):
            ids = torch.from_numpy(np.concatenate([part[f"{side}_top_ids"] for part in parts])).to(logits.device)
            top = torch.gather(logits, 1, ids.long().clamp(min=0)).masked_fill(ids < 0, -torch.inf)
            found.append(f"{side}_logits {rounding_words(top)}")
    if found:
        warnings.warn(
            f"{'; '.join(found)} at the top {ids.shape[1]} ids: log-probabilities and divergences are off by as much, "
            "and ids tie and move across rank k; have the output layer's products in float32 (a cast afterwards brings "
            "nothing back)",
            OpdProbeWarning,
            stacklevel=3,
        )


def _type_name(logits: Tensor) -> str:
    return str(logits.dtype).removeprefix("torch.")


def _as_tensor(values: ArrayLike | Tensor) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    if isinstance(values, (list, tuple)) and values and all(isinstance(row, Tensor) for row in values):
        return torch.stack([row.detach() for row in values])
    array = np.array(values)
    if array.dtype.name == "bfloat16":  # of the package that gives numpy this type; torch does not take it
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _matrix(name: str, values: ArrayLike | Tensor) -> Tensor:
    try:
        tensor = _as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: expected numbers [T, V] ({str(error).splitlines()[0][:80]})") from None
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

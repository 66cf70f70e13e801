"""From logits or hidden states of both models to the columns of a trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opd_probe.errors import LogitError
from opd_probe.stats.pair import PairStatistics, Reduction, pair_statistics
from opd_probe.stats.projection import OutputProjection, mass_outside
from opd_probe.stats.scratch import Scratch

Columns = dict[str, NDArray[Any]]

CHUNK_VALUES = {"cpu": 20_000_000, "cuda": 200_000_000}
"""Logits of one model in a chunk, by device: 80 and 800 MB of float32, of which a chunk needs two."""


def default_chunk(width: int, device: torch.device) -> int:
    """Positions per chunk for an output layer of ``width``: enough for an efficient matrix product."""
    return int(min(8192, max(16, CHUNK_VALUES.get(device.type, CHUNK_VALUES["cpu"]) // width)))


class VocabularyMap:
    """Between token ids and the columns of logits over the shared vocabulary."""

    def __init__(self, shared_ids: NDArray[np.int64], width: int, device: torch.device) -> None:
        self.size = len(shared_ids)
        self._is_prefix = self.size == 0 or int(shared_ids[-1]) == self.size - 1
        if self._is_prefix:
            return
        lookup = torch.full((width,), -1, dtype=torch.int64)
        lookup[torch.from_numpy(shared_ids)] = torch.arange(self.size)
        self._columns = lookup.to(device)
        self._ids = torch.from_numpy(shared_ids).to(device)

    def columns(self, token_ids: Tensor) -> Tensor:
        """The column of each token id, -1 outside the shared vocabulary."""
        if self._is_prefix:
            return torch.where(token_ids < self.size, token_ids, -1)
        within = token_ids < self._columns.shape[0]
        return torch.where(within, self._columns[token_ids.clamp(max=self._columns.shape[0] - 1)], -1)

    def ids(self, columns: Tensor) -> Tensor:
        """The token id of each column; −1, where a list has ended, stays."""
        return columns if self._is_prefix else self._ids[columns.clamp(min=0)].masked_fill_(columns < 0, -1)


class StateScorer:
    """Scores states from the hidden states of both models, chunk by chunk; never holds more than a chunk's logits.

    Args:
        student, teacher: the output layers, shared ids first.
        vocabulary: maps token ids to columns of the shared logits.
        k: depth of the top lists.
        temperature: of both scored distributions.
        jsd: also the Jensen-Shannon divergence.
        chunk: positions per chunk, see :func:`default_chunk`.
        reduction: how the passes over whole rows are done, see :func:`opd_probe.stats.pair.pair_statistics`.
    """

    def __init__(
        self,
        student: OutputProjection,
        teacher: OutputProjection,
        vocabulary: VocabularyMap,
        k: int,
        *,
        temperature: float = 1.0,
        jsd: bool = False,
        chunk: int,
        reduction: Reduction | None = None,
    ) -> None:
        self.student, self.teacher, self.vocabulary = student, teacher, vocabulary
        self.k, self.temperature, self.jsd = k, temperature, jsd
        self.chunk = chunk
        self.reduction = reduction
        self._scratch = Scratch()

    def score(self, student_hidden: Tensor, teacher_hidden: Tensor, token_ids: Tensor) -> Columns:
        """Columns of N states from hidden states [N, d_student] and [N, d_teacher] and the sampled ids [N].

        Raises:
            LogitError: ``row`` is the offending state's index in [0, N).
        """
        parts: list[Columns] = []
        for start in range(0, len(token_ids), self.chunk):
            rows = slice(start, start + self.chunk)
            student, student_rest = self.student.logits(student_hidden[rows], self._scratch, "student")
            teacher, teacher_rest = self.teacher.logits(teacher_hidden[rows], self._scratch, "teacher")
            rest = teacher_rest.to(student.device)
            try:
                parts.append(
                    score_logits(
                        student,
                        teacher.to(student.device),
                        token_ids[rows],
                        self.k,
                        vocabulary=self.vocabulary,
                        student_rest=student_rest,
                        teacher_rest=rest,
                        temperature=self.temperature,
                        jsd=self.jsd,
                        reduction=self.reduction,
                    )
                )
            except LogitError as error:
                raise LogitError(str(error), start + (error.row or 0)) from None
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def score_logits(
    student: Tensor,
    teacher: Tensor,
    token_ids: Tensor,
    k: int,
    *,
    vocabulary: VocabularyMap,
    student_rest: Tensor,
    teacher_rest: Tensor,
    temperature: float = 1.0,
    jsd: bool = False,
    reduction: Reduction | None = None,
) -> Columns:
    """Trace columns of T states from float32 logits over the shared ids [T, S] and over the others [T, R]."""
    statistics = pair_statistics(
        student,
        teacher,
        vocabulary.columns(token_ids),
        k,
        temperature=temperature,
        jsd=jsd,
        reduction=reduction,
    )
    columns = _to_columns(statistics, vocabulary)
    for side, rest, log_partition in (
        ("student", student_rest, statistics.student_log_partition),
        ("teacher", teacher_rest, statistics.teacher_log_partition),
    ):
        check_rest(rest, side)
        columns[f"{side}_mass_outside"] = mass_outside(rest, log_partition, temperature).cpu().numpy()
    columns["token_id"] = token_ids.to(torch.int32).cpu().numpy()
    return columns


def check_rest(rest: Tensor, side: str) -> None:
    """Logits outside the shared ids enter one statistic only, but are held to the same rule.

    Raises:
        LogitError: one is NaN or +inf.
    """
    if rest.shape[1] == 0:
        return
    bad = ~(rest.amax(-1) < torch.inf)  # amax passes NaN on
    if bool(bad.any()):
        row = int(torch.nonzero(bad)[0, 0])
        what = "NaN" if bool(torch.isnan(rest[row]).any()) else "+inf"
        raise LogitError(f"the {side}'s logits are {what} outside the shared vocabulary at a state", row)


def _to_columns(statistics: PairStatistics, vocabulary: VocabularyMap) -> Columns:
    columns: Columns = {}
    for name in statistics.names():
        if name.endswith("log_partition"):
            continue
        values: Tensor = getattr(statistics, name)
        if name.endswith("_top_ids"):
            values = vocabulary.ids(values).to(torch.int32)
        columns[name] = values.cpu().numpy()
    return columns


def rows_of(columns: Mapping[str, NDArray[Any]], rows: slice) -> Columns:
    """The given rows of every column."""
    return {name: values[rows] for name, values in columns.items()}

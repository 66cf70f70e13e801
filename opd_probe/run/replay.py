"""The public ``replay()``: models and rollouts in, trace out; re-uses a stored trace when nothing changed."""

from __future__ import annotations

import gc
import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from opd_probe.engine.logits import check_temperature
from opd_probe.engine.provenance import software
from opd_probe.engine.replay import BATCH_TOKENS, Progress, Replay, ReplaySettings
from opd_probe.engine.sequences import skip_reason
from opd_probe.engine.stored import StoredModel, store_hidden_states
from opd_probe.errors import InputError, OpdProbeWarning, TraceError
from opd_probe.models.checkpoints import tokenizer_files_digest, weights_digest
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.models.vocabulary import SharedVocabulary, shared_vocabulary, template_digest
from opd_probe.rollouts.files import (
    encode_rollouts,
    prompt_key,
    read_rollouts,
    rollouts_digest,
    rollouts_from_dicts,
)
from opd_probe.rollouts.grading import grade
from opd_probe.run.memory import too_large_together
from opd_probe.run.output import check_file_writable
from opd_probe.trace import Trace, TraceSpool, read_trace, rollout_table
from opd_probe.trace.schema import FORMAT_VERSION, array_columns
from opd_probe.types import Rollout

TRACE_K = 64
"""Default depth of the stored top lists."""

OUTSIDE_WARNING = 0.01
"""Mean probability outside the shared vocabulary above which a replay warns."""

RolloutsSource = str | Path | Iterable[Mapping[str, Any]] | Sequence[Rollout]


def replay(
    student: Any,
    teacher: Any,
    rollouts: RolloutsSource,
    k: int = TRACE_K,
    jsd: bool = False,
    out: str | Path | None = None,
    *,
    temperature: float = 1.0,
    dtype: str | None = None,
    device: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    chunk: int | None = None,
    tokenizer: Any = None,
    allow_special_mismatch: bool = False,
    trust_remote_code: bool = False,
    labels: Mapping[str, Any] | None = None,
    reuse: bool = True,
    sequential: bool | None = None,
    progress: Progress | None = None,
) -> Trace:
    """Run student and teacher over the same student-visited states and keep what every metric needs.

    Args:
        student, teacher: a checkpoint directory, a hub id, a :class:`Checkpoint`, a loaded transformers model, or
            a :class:`LoadedModel`.
        rollouts: a rollout file (JSONL or Parquet), or dictionaries with ``prompt_ids`` and ``response_ids``.
        k: the depth K of the stored top lists, capped at the shared vocabulary. Metrics answer for any k ≤ K.
        jsd: also store the Jensen-Shannon divergence (costs another pass over the logits).
        out: the trace file to write; None keeps the trace in memory. An interrupted replay with the same
            ``out`` goes on where it stopped, and a finished one that still fits is used again.
        temperature: both scored distributions are softmax(logits / temperature).
        dtype: type to load the weights in; None: as stored. Statistics are float32 either way.
        device: ``"cpu"``, ``"cuda"``, …; None: a GPU when there is one.
        batch_tokens: tokens per batch, padding included. Does not change the numbers.
        chunk: positions whose logits are held at a time; None: chosen by the width of the output layer.
        tokenizer: for both models, in place of those beside the weights.
        allow_special_mismatch: accept an id whose two strings differ when both tokenizers call it special.
        trust_remote_code: let a model directory run its own code. Off unless you say so.
        labels: JSON values to keep with the trace, such as ``run``, ``step``, ``teacher`` and ``states``.
        reuse: whether a fitting trace at ``out`` is used again.
        sequential: load the student, run it, let it go, and only then load the teacher; the student's hidden states
            wait on disk and the numbers are the same. None: when both are read from disk and do not fit together.
        progress: called with (states done, states in all).

    Returns:
        The trace; rollouts in the order given, skipped ones in its rollout table with the reason.

    Raises:
        OpdProbeError: bad input, in one line.
    """
    _check_settings(k, temperature, batch_tokens)
    path = None if out is None else Path(out)
    given = _read(rollouts)
    options = {"temperature": temperature, "dtype": dtype, "allow_special_mismatch": allow_special_mismatch}
    fingerprint: dict[str, Any] = {}
    if path is not None:
        check_file_writable(path)
        fingerprint = _fingerprint(student, teacher, given, tokenizer, options)
        if reuse and path.is_file():
            stored = _reusable(path, fingerprint, k, jsd)
            if stored is not None:
                return _relabel(stored, labels)
    load = {"dtype": dtype, "device": device, "tokenizer": tokenizer, "trust_remote_code": trust_remote_code}
    if sequential is None:
        sequential = too_large_together(student, teacher, dtype, device)
    with TemporaryDirectory(prefix="opd-probe-", dir=_scratch_place(path)) if sequential else nullcontext() as place:
        first: LoadedModel | StoredModel = load_model(student, **load)
        given = encode_rollouts(given, first.tokenizer)
        if place is not None:
            first = store_hidden_states(first, given, Path(place), batch_tokens=batch_tokens, progress=progress)
            gc.collect()  # modules hold reference cycles: without it the student would stay beside the teacher
        second = load_model(teacher, **load)
        vocabulary = shared_vocabulary(first, second, allow_special_mismatch=allow_special_mismatch)
        settings = ReplaySettings(min(k, vocabulary.size), temperature, jsd, batch_tokens, chunk)
        job = _Job((first, second), vocabulary, given, settings)
        return job.run(path, fingerprint, dict(labels or {}), progress)


def _scratch_place(path: Path | None) -> str | None:
    """Where hidden states wait: beside the trace, whose disk the user chose, if its folder is there."""
    return str(path.parent) if path is not None and path.parent.is_dir() else None


def stored_trace(
    student: Any,
    teacher: Any,
    rollouts: Sequence[Rollout],
    out: Path,
    k: int,
    jsd: bool,
    *,
    temperature: float,
    dtype: str | None,
    tokenizer: Any,
    allow_special_mismatch: bool,
    labels: Mapping[str, Any],
) -> Trace | None:
    """The trace at ``out`` when :func:`replay` with the same arguments would use it again, else None.

    Loads no model. A trace that does not fit any more is warned about, with the reason.
    """
    if not out.is_file():
        return None
    options = {"temperature": temperature, "dtype": dtype, "allow_special_mismatch": allow_special_mismatch}
    stored = _reusable(out, _fingerprint(student, teacher, rollouts, tokenizer, options), k, jsd)
    return None if stored is None else _relabel(stored, labels)


@dataclass(frozen=True)
class _Job:
    """A replay whose inputs are all at hand."""

    models: tuple[LoadedModel | StoredModel, LoadedModel]
    vocabulary: SharedVocabulary
    rollouts: Sequence[Rollout]
    settings: ReplaySettings

    def run(
        self,
        path: Path | None,
        fingerprint: Mapping[str, Any],
        labels: Mapping[str, Any],
        progress: Progress | None,
    ) -> Trace:
        engine = Replay(*self.models, self.rollouts, self.vocabulary.ids, self.settings)
        counts = engine.state_counts
        columns = array_columns(jsd=self.settings.jsd, sampler=any(r.logprobs is not None for r in self.rollouts))
        key = _digest({**fingerprint, "K": self.settings.k, "columns": [c.name for c in columns]})
        directory = None if path is None else path.with_name(f".{path.name}.partial")
        spool = TraceSpool(counts, columns, self.settings.k, directory, key)
        for index, values in engine.states(spool.done, progress):
            spool.put(index, values)
        self._warn_outside(spool, labels)
        table = rollout_table(self._rows(counts))
        return spool.finish(table, self._provenance(fingerprint, labels), path)

    def _warn_outside(self, spool: TraceSpool, labels: Mapping[str, Any]) -> None:
        where = f"run {labels['run']}, step {labels.get('step')}: " if "run" in labels else ""
        for side, model in zip(("student", "teacher"), self.models, strict=True):
            outside = spool.arrays[f"{side}_mass_outside"]
            mean = float(np.mean(outside)) if len(outside) else 0.0
            if mean > OUTSIDE_WARNING:
                warnings.warn(
                    f"{where}{mean:.1%} of the probability of the {side} {model.name} lies outside the shared "
                    "vocabulary (mean over states); it is left out of every metric",
                    OpdProbeWarning,
                    stacklevel=4,
                )

    def _rows(self, counts: Sequence[int]) -> list[dict[str, Any]]:
        rows = []
        for rollout, n_states in zip(self.rollouts, counts, strict=True):
            rows.append(
                {
                    "rollout_id": rollout.id,
                    "prompt_id": prompt_key(rollout),
                    "step": rollout.step,
                    "prompt_length": len(rollout.prompt_ids),
                    "response_length": len(rollout.response_ids),
                    "n_states": n_states,
                    "finish_reason": rollout.finish_reason,
                    "answer": rollout.answer,
                    "score": self._score(rollout),
                    "token_source": rollout.token_source,
                    "skipped": skip_reason(rollout),
                }
            )
        return rows

    def _score(self, rollout: Rollout) -> float | None:
        if rollout.score is not None or rollout.answer is None:
            return rollout.score
        text = rollout.response
        tokenizer = self.models[0].tokenizer
        if text is None and tokenizer is not None:
            text = str(tokenizer.decode(list(rollout.response_ids), skip_special_tokens=True))
        return None if text is None else float(grade(text, rollout.answer))

    def _provenance(self, fingerprint: Mapping[str, Any], labels: Mapping[str, Any]) -> dict[str, Any]:
        student, teacher = self.models
        return {
            "format_version": FORMAT_VERSION,
            "K": self.settings.k,
            "temperature": self.settings.temperature,
            "jsd": self.settings.jsd,
            "student": {**student.identity, "width": student.width},
            "teacher": {**teacher.identity, "width": teacher.width},
            "vocabulary": {
                "size": self.vocabulary.size,
                "assumed": self.vocabulary.assumed,
                "student_tokenizer_sha256": self.vocabulary.tokenizer_sha256[0],
                "teacher_tokenizer_sha256": self.vocabulary.tokenizer_sha256[1],
            },
            "template_sha256": template_digest(student.tokenizer) if student.tokenizer is not None else None,
            "labels": {"states": "unknown", **labels},
            "fingerprint": dict(fingerprint),
            "software": software(),
        }


def _check_settings(k: int, temperature: float, batch_tokens: int) -> None:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"k = {k!r}: expected a whole number of at least 1")
    if batch_tokens < 1:
        raise InputError(f"batch_tokens = {batch_tokens!r}: expected a whole number of at least 1")
    check_temperature(temperature)


def _read(rollouts: RolloutsSource) -> list[Rollout]:
    if isinstance(rollouts, (str, Path)):
        return read_rollouts(rollouts)
    given: list[Any] = list(rollouts)
    nouns = [rollout for rollout in given if isinstance(rollout, Rollout)]
    if nouns and len(nouns) == len(given):
        return nouns
    if nouns:
        raise InputError("rollouts: Rollout objects and dictionaries in one list; expected all of one kind")
    return rollouts_from_dicts(given)


def _fingerprint(
    student: Any, teacher: Any, rollouts: Sequence[Rollout], tokenizer: Any, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that a stored trace must agree on, flat, so that the first difference can be named."""
    return {
        "student weights": weights_digest(student),
        "teacher weights": weights_digest(teacher),
        "student tokenizer": tokenizer_files_digest(tokenizer or student),
        "teacher tokenizer": tokenizer_files_digest(tokenizer or teacher),
        "rollouts": rollouts_digest(rollouts),
        **options,
    }


def _reusable(path: Path, fingerprint: Mapping[str, Any], k: int, jsd: bool) -> Trace | None:
    """The stored trace when it fits; otherwise None, with a warning that says why it is made anew."""
    try:
        stored = read_trace(path)
    except TraceError as error:
        warnings.warn(f"{error} (made anew)", OpdProbeWarning, stacklevel=3)
        return None
    before = stored.provenance.get("fingerprint", {})
    differing = [name for name, value in fingerprint.items() if before.get(name) != value]
    reasons = [f"{', '.join(differing)} changed since it was made"] if differing else []
    if jsd and not stored.provenance.get("jsd"):
        reasons.append("it has no Jensen-Shannon divergence")
    if min(k, stored.vocabulary_size) > stored.K:
        reasons.append(f"it holds the top {stored.K}, asked for are {k}")
    if not reasons:
        return stored
    warnings.warn(f"trace {path}: {'; '.join(reasons)}; made anew", OpdProbeWarning, stacklevel=3)
    return None


def _relabel(trace: Trace, labels: Mapping[str, Any] | None) -> Trace:
    if labels:
        trace.provenance["labels"] = {**trace.provenance.get("labels", {}), **labels}
    return trace


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()

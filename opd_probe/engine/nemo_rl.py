"""Traces from what NeMo-RL dumps of on-policy distillation while it trains: no model is needed.

Read in NVIDIA-NeMo/RL (September 2026), ``nemo_rl/algorithms/opd_diagnostics.py``. ``opd_topk_stats_step{N}.pt`` has
both models' top-k logits, in bfloat16, and the logarithms of their partition functions; ``opd_token_stats_step{N}.pt``
the sampled tokens' log-probabilities. Rows are response tokens one after another; ``token_sequence_position`` says
where. Of a step with both files the trace has both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd_probe.engine.lists import Side, completed, state_arrays
from opd_probe.errors import InputError
from opd_probe.rollouts.torch_rows import load_data
from opd_probe.stats.rounding import rounding
from opd_probe.stats.topk import NO_ID
from opd_probe.trace import Trace, rollout_table
from opd_probe.trace.schema import FORMAT_VERSION
from opd_probe.versions import software

_WHAT = "NeMo-RL's statistics"
_LISTS = ("student_topk_token_ids", "student_topk_logits", "student_V_logsumexp",
          "teacher_topk_token_ids", "teacher_topk_logits", "teacher_V_logsumexp")  # fmt: skip
_TOKENS = ("student_prev_logprobs", "teacher_logprobs", "generation_logprobs")
_PLACES = ("token_sample_index", "token_sequence_position", "token_response_position", "token_ids")
_SAMPLES = ("reward", "sample_loss_mask", "input_length")
DEFERRED = "student_prev_topk_token_ids"
"""What the dump of a step has of which the teacher's lists are to be computed later."""


@dataclass(frozen=True, slots=True)
class Dump:
    """One file.

    Attributes:
        content: its tensors and values; those of a token have N entries, those of a sequence B.
        lists: whether it has both models' top-k; else the log-probabilities of the sampled tokens.
    """

    path: Path
    content: Mapping[str, Any]
    lists: bool

    @property
    def step(self) -> int:
        """The update that the batch went into, counted from 1."""
        step = self.content.get("step")
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise InputError(f"{self.path}: step is {step!r}; expected a whole number from 0 on")
        return step


def find_dumps(paths: Sequence[str | Path]) -> list[Dump]:
    """The dumps among files, and in directories and the folders in them; of other files nothing is said.

    Raises:
        InputError: a dump that is broken, or one without the teacher's lists alone.
    """
    files = [file for path in map(Path, paths) for file in _files(path)]
    contents = [(file, load_data(file, _WHAT)) for file in files]
    dumps = [dump for file, content in contents if (dump := _opened(file, content)) is not None]
    deferred = [file for file, content in contents if isinstance(content, dict) and DEFERRED in content]
    if deferred and not dumps:
        raise InputError(
            f"{_WHAT} {deferred[0]}: has the student's lists alone, and the teacher's were deferred; ingest "
            "opd_topk_offline_inputs_step….pt beside it to a rollout file, and replay that with both models"
        )
    return dumps


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".pt" else []
    return sorted(file for pattern in ("opd_*.pt", "*/opd_*.pt") for file in path.glob(pattern))


def _opened(path: Path, content: Any) -> Dump | None:
    if not isinstance(content, dict):
        return None
    for names, lists in ((_LISTS, True), (_TOKENS, False)):
        if content.keys() & set(names) and "token_sample_index" in content:
            _check(path, content, (*names, *_PLACES, *_SAMPLES))
            return Dump(path, content, lists)
    return None


def _check(path: Path, content: Mapping[str, Any], names: Sequence[str]) -> None:
    """That every tensor is there, and of the size of the others of its kind."""
    for name in names:
        if not isinstance(content.get(name), Tensor):
            held = "is not there" if name not in content else f"is {type(content[name]).__name__}"
            raise InputError(f"{_WHAT} {path}: {name} {held}; expected a tensor")
    n, b = len(content["token_sample_index"]), len(content["reward"])
    k = content["student_topk_token_ids"].shape[-1:] if "student_topk_token_ids" in names else ()
    for name in names:
        shape = (b,) if name in _SAMPLES else (n, *k) if "topk" in name else (n,)
        if tuple(content[name].shape) != shape:
            raise InputError(f"{_WHAT} {path}: {name} has the shape {tuple(content[name].shape)}; expected {shape}")
    index = content["token_sample_index"].long()
    if n == 0 or int(index.min()) < 0 or int(index.max()) >= b or bool((index.diff() < 0).any()):
        raise InputError(f"{_WHAT} {path}: token_sample_index: expected tokens of sequences 0 to {b - 1}, in order")
    if int(content["token_ids"].min()) < 0:
        raise InputError(f"{_WHAT} {path}: token_ids holds {int(content['token_ids'].min())}; expected token ids")


def dump_traces(dumps: Sequence[Dump], run: str) -> list[Trace]:
    """A trace per step.

    Raises:
        InputError: two files of one step and kind, or files of one step that disagree.
    """
    steps: dict[int, dict[bool, Dump]] = {}
    for dump in dumps:
        held = steps.setdefault(dump.step, {})
        if dump.lists in held:
            raise InputError(
                f"{_WHAT} {dump.path}: of step {dump.step}, as {held[dump.lists].path} is; give the files of one run"
            )
        held[dump.lists] = dump
    return [_trace(held.get(True), held.get(False), run) for _, held in sorted(steps.items())]


def _trace(lists: Dump | None, tokens: Dump | None, run: str) -> Trace:
    main = lists or tokens
    assert main is not None
    content, remarks = main.content, []
    trained = content["sample_loss_mask"][content["token_sample_index"].long()] > 0
    columns: dict[str, Tensor] = {"token_id": content["token_ids"].long()}
    if lists is not None:
        found, off = _lists(lists)
        columns |= found
        kind = str(content["student_topk_logits"].dtype).removeprefix("torch.")
        remarks.append(f"the top-k logits were stored in {kind}: log-probabilities are off by up to {off:.2g} nats")
    else:
        nothing = torch.full((len(columns["token_id"]), 1), torch.nan)
        for side, other in (("student", "teacher"), ("teacher", "student")):
            columns |= {f"{side}_top_ids": nothing.nan_to_num(NO_ID).long(), f"{side}_top_logprobs": nothing,
                        f"{other}_logprobs_at_{side}_top": nothing}  # fmt: skip
        remarks.append("no top-k lists were dumped: what is made of them is unknown")
    columns |= _sampled(lists, tokens, columns)
    start = _starts(content)
    columns["position"] = content["token_sequence_position"].long() - start[content["token_sample_index"].long()]
    if not bool(trained.any()):
        raise InputError(f"{_WHAT} {main.path}: no sequence with sample_loss_mask 1; nothing was trained on")
    return Trace(
        _rollouts(main, start),
        _provenance(main, columns, run, remarks),
        arrays=state_arrays({name: values[trained] for name, values in columns.items()}),
    )


def _lists(dump: Dump) -> tuple[dict[str, Tensor], float]:
    """Both lists in rank order, and by how much their log-probabilities may be off, in nats."""
    sides: dict[str, Side] = {}
    off = 0.0
    for side in ("student", "teacher"):
        stored = dump.content[f"{side}_topk_logits"]
        ids, logits = dump.content[f"{side}_topk_token_ids"].long(), stored.float()
        known = (ids >= 0).all(1)  # elsewhere the model was not asked
        off = max(off, rounding(stored[known]) if bool(known.any()) else 0.0)
        logprobs = logits - dump.content[f"{side}_V_logsumexp"].float()[:, None]
        most = float(logprobs[known].exp().sum(1).max()) if bool(known.any()) else 0.0
        if not most <= 1.05 * np.exp(2 * off):
            raise InputError(
                f"{_WHAT} {dump.path}: {side}_topk_logits − {side}_V_logsumexp sum to {most:.4g} as probabilities; "
                "expected at most 1"
            )
        logprobs = logprobs.clamp(max=0.0).masked_fill(~known[:, None], torch.nan)
        ids = ids.masked_fill(~known[:, None] | torch.isneginf(logprobs), NO_ID)
        order = logprobs.argsort(dim=1, descending=True, stable=True)  # as stored, where rounding made two equal
        sides[side] = (ids.gather(1, order), logprobs.gather(1, order), None)
    student, teacher = sides["student"], sides["teacher"]
    return {
        "student_top_ids": student[0], "student_top_logprobs": student[1],
        "teacher_logprobs_at_student_top": completed(student, teacher),
        "teacher_top_ids": teacher[0], "teacher_top_logprobs": teacher[1],
        "student_logprobs_at_teacher_top": completed(teacher, student),
    }, off  # fmt: skip


def _sampled(lists: Dump | None, tokens: Dump | None, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sampled tokens' log-probabilities: as dumped, else as far as the lists have them."""
    names = ("student_logprob", "teacher_logprob", "sampler_logprob")
    if tokens is None:
        found: dict[str, Tensor] = {}
        for side in ("student", "teacher"):
            there = columns[f"{side}_top_ids"] == columns["token_id"][:, None]
            listed = columns[f"{side}_top_logprobs"].masked_fill(~there, 0.0).sum(1)
            found[f"{side}_logprob"] = listed.masked_fill(~there.any(1), torch.nan)
        return found
    values = {name: tokens.content[given].float() for name, given in zip(names, _TOKENS, strict=True)}
    if lists is None:
        return values
    # The lists may be of some of the tokens.
    width = 1 + int(tokens.content["token_sequence_position"].max())
    keys, wanted = (_keys(dump, width) for dump in (tokens, lists))
    at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    if bool((keys[at] != wanted).any()) or bool((tokens.content["token_ids"][at] != columns["token_id"]).any()):
        raise InputError(f"{_WHAT} {lists.path}: its tokens are not those of {tokens.path}; give the files of one run")
    return {name: held[at] for name, held in values.items()}


def _keys(dump: Dump, width: int) -> Tensor:
    """A number for each token, by sequence and place."""
    places: tuple[Tensor, Tensor] = (dump.content["token_sample_index"], dump.content["token_sequence_position"])
    return places[0].long() * width + places[1].long()


def _starts(content: Mapping[str, Any]) -> Tensor:
    """[B]: where each response begins; at the earliest that a token's place among the student's own says."""
    first = content["token_sequence_position"].long() - content["token_response_position"].long()
    starts = torch.full((len(content["reward"]),), torch.iinfo(torch.int64).max)
    return starts.scatter_reduce(0, content["token_sample_index"].long(), first, "amin")


def _rollouts(dump: Dump, start: Tensor) -> Any:
    content = dump.content
    counts = torch.bincount(content["token_sample_index"].long(), minlength=len(start)).tolist()
    groups = content.get("prompt_group_index")
    table = []
    for index, (count, first) in enumerate(zip(counts, start.tolist(), strict=True)):
        trained = float(content["sample_loss_mask"][index]) > 0
        reason = None if count and trained else "no token was logged" if trained else "not trained on"
        group = index if groups is None else int(groups[index])
        table.append({
            "rollout_id": f"{dump.step}/{index}",
            "prompt_id": f"{dump.step}/{group}",
            "step": dump.step,
            "n_states": 0 if reason else count,
            "prompt_length": first if count else None,
            "response_length": int(content["input_length"][index]) - first if count else None,
            "token_source": "sampled_ids",
            "score": float(content["reward"][index]),
            "skipped": reason,
        })  # fmt: skip
    return rollout_table(table)


def _provenance(dump: Dump, columns: Mapping[str, Tensor], run: str, remarks: list[str]) -> dict[str, Any]:
    seen = 1 + max(int(columns[name].max()) for name in ("student_top_ids", "teacher_top_ids", "token_id"))
    return {
        "format_version": FORMAT_VERSION,
        "K": columns["student_top_ids"].shape[1],
        "temperature": 1.0,
        "student": {"source": _WHAT},
        "teacher": {"source": _WHAT},
        "vocabulary": {"size": seen, "assumed": True},
        "labels": {"run": run, "step": dump.step, "teacher": "teacher", "states": "own"},
        "warnings": remarks,
        "software": software(),
    }

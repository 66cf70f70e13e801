"""Metrics inside a loop of verl's shape, against a later look at the checkpoints that the loop saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import opd_probe
from opd_probe.integrations.verl import overlap_metrics, top_lists, topk_trace
from opd_probe.models.loading import load_model
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

K, STEPS, MICRO_BATCH = 8, 2, 2
PROMPTS = [[3, 4, 5], [6], [7, 8], [9, 10, 11, 12]]
RESPONSES = [[13, 14, 15, 16], [17, 18], [19], [20, 21, 22]]
PAD = 0
KNOWN = ("overlap_ratio", "overlap_advantage", "student_overlap_mass", "teacher_topk_mass", "reverse_kl",
         "sampled_reward", "topk_reverse_kl_student", "response_length")  # fmt: skip


def padded(rows: list[list[int]], side: str) -> tuple[Tensor, Tensor]:
    """Ids [B, T] and their mask."""
    ids, mask = ([torch.tensor(row) for row in given] for given in (rows, [[1] * len(row) for row in rows]))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(ids, True, PAD, side), pad(mask, True, 0, side)


def batch_of() -> dict[str, Tensor]:
    """A batch as verl's: prompts padded on the left, responses on the right, positions that count real tokens."""
    (prompts, before), (responses, mask) = padded(PROMPTS, "left"), padded(RESPONSES, "right")
    seen = torch.cat([before, mask], 1)
    return {
        "input_ids": torch.cat([prompts, responses], 1),
        "attention_mask": seen,
        "position_ids": (seen.cumsum(1) - 1).clamp_(min=0),
        "responses": responses,
        "response_mask": mask,
    }


def response_logits(model: Any, micro: dict[str, Tensor], *, packed: bool) -> Tensor:
    """[b, R, V] before each token of the response; ``packed``: real tokens alone, one sequence behind the other."""
    length = micro["responses"].shape[1]
    if not packed:
        logits = model(
            input_ids=micro["input_ids"], attention_mask=micro["attention_mask"], position_ids=micro["position_ids"]
        ).logits
        return logits[:, -length - 1 : -1]
    real = micro["attention_mask"].bool()
    logits = model(
        input_ids=micro["input_ids"][real][None], position_ids=micro["position_ids"][real][None], use_cache=False
    ).logits
    whole = logits.new_zeros(*real.shape, logits.shape[-1])
    whole[real] = logits[0]
    return whole[:, -length - 1 : -1]


def nested(given: Tensor, mask: Tensor) -> Tensor:
    return torch.nested.nested_tensor([row[keep] for row, keep in zip(given, mask.bool(), strict=True)],
                                      layout=torch.jagged)  # fmt: skip


def one_step(student: Any, teacher: Any, batch: dict[str, Tensor], *, packed: bool) -> dict[str, Tensor]:
    """What the loop holds after the forward and backward passes of its micro-batches."""
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, len(PROMPTS), MICRO_BATCH):
        micro = {name: value[start : start + MICRO_BATCH] for name, value in batch.items()}
        logits = response_logits(student, micro, packed=packed)
        with torch.no_grad():
            other = response_logits(teacher, micro, packed=packed)
        p, q = logits.log_softmax(-1), other.log_softmax(-1)
        ids, own = top_lists(logits, K)
        found = {
            "student_topk_ids": ids, "student_topk_logprobs": own, "teacher_logprobs_at_student_top": q.gather(-1, ids),
            "token_ids": micro["responses"], "reverse_kl": (p.exp() * (p - q)).sum(-1),
        }  # fmt: skip
        found["teacher_topk_ids"], found["teacher_topk_logprobs"] = top_lists(other, K)
        for name, logs in (("student_logprobs", p), ("teacher_logprobs", q)):
            found[name] = logs.gather(-1, micro["responses"][..., None])[..., 0]
        ((found["reverse_kl"] * micro["response_mask"]).sum() / batch["response_mask"].sum()).backward()
        for name, value in found.items():
            parts.setdefault(name, []).append(value.detach())
    return {name: torch.cat(values) for name, values in parts.items()}


def test_a_later_look_finds_what_the_loop_logged(tmp_path: Path) -> None:
    """Micro-batches that are padded, or packed without padding; tensors that are padded, or nested."""
    student, teacher, tokenizer = tiny_model(40, seed=0).train(), tiny_model(40, seed=1), tiny_tokenizer(40)
    batch, mask = batch_of(), batch_of()["response_mask"]
    logged: list[tuple[dict[str, float], ...]] = []
    for step in range(STEPS):
        save_checkpoint(tmp_path / f"global_step_{step}", student, tokenizer)
        plain = one_step(student, teacher, batch, packed=False) | {"response_mask": mask}
        packed = one_step(student, teacher, batch, packed=True)
        loose = {name: nested(value, mask) for name, value in packed.items()} | {"response_mask": nested(mask, mask)}
        layouts = (plain, packed | {"response_mask": mask}, loose)
        logged.append(tuple(overlap_metrics(**one, vocabulary_size=40) for one in layouts))
        topk_trace(**loose, step=step).save(tmp_path / "traces" / f"step-{step}.parquet")
        with torch.no_grad():
            for parameter in student.parameters():
                parameter -= 0.25 * parameter.grad  # of both passes
                parameter.grad = None
    rollouts = [
        {"id": str(i), "prompt_ids": p, "response_ids": r}
        for i, (p, r) in enumerate(zip(PROMPTS, RESPONSES, strict=True))
    ]
    loaded = load_model(teacher, tokenizer=tokenizer)
    for step, said in enumerate(logged):
        trace = opd_probe.replay(tmp_path / f"global_step_{step}", loaded, rollouts, k=K)
        later = opd_probe.summarize(trace, K, resamples=0)
        for metrics in said:
            for name in KNOWN:
                assert metrics[name] == pytest.approx(later[name], rel=2e-5, abs=2e-7), name
            assert metrics["n_states"] == later["n_states"] == sum(map(len, RESPONSES))
        kept = opd_probe.read_trace(tmp_path / "traces" / f"step-{step}.parquet")
        assert (kept.column("token_id") == trace.column("token_id")).all()
    assert logged[0][0]["reverse_kl"] != pytest.approx(logged[1][0]["reverse_kl"], rel=1e-3)

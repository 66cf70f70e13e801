"""Metrics inside a loop of verl's shape, against a later look at the checkpoints that the loop saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import opd_probe
from opd_probe.integrations.verl import overlap_metrics, top_lists, topk_trace
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

K, STEPS, MICRO_BATCH = 8, 2, 2
PROMPTS = [[3, 4, 5], [6], [7, 8], [9, 10, 11, 12]]
RESPONSES = [[13, 14, 15, 16], [17, 18], [19], [20, 21, 22]]
PAD = 0


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


@pytest.mark.parametrize("layout", ["padded", "packed", "nested"])
def test_a_later_look_finds_what_the_loop_logged(layout: str, tmp_path: Path) -> None:
    student, teacher, tokenizer = tiny_model(40, seed=0).train(), tiny_model(40, seed=1), tiny_tokenizer(40)
    save_checkpoint(tmp_path / "teacher", teacher, tokenizer)
    batch, logged = batch_of(), []
    for step in range(STEPS):
        save_checkpoint(tmp_path / f"global_step_{step}", student, tokenizer)
        parts: dict[str, list[Tensor]] = {}
        for start in range(0, len(PROMPTS), MICRO_BATCH):
            micro = {name: value[start : start + MICRO_BATCH] for name, value in batch.items()}
            logits = response_logits(student, micro, packed=layout != "padded")
            with torch.no_grad():
                other = response_logits(teacher, micro, packed=layout != "padded")
            p, q = logits.log_softmax(-1), other.log_softmax(-1)
            ids, own = top_lists(logits, K)
            found = {"student_topk_ids": ids, "student_topk_logprobs": own,
                     "teacher_logprobs_at_student_top": q.gather(-1, ids),
                     "token_ids": micro["responses"], "reverse_kl": (p.exp() * (p - q)).sum(-1)}  # fmt: skip
            found["teacher_topk_ids"], found["teacher_topk_logprobs"] = top_lists(other, K)
            for name, logs in (("student_logprobs", p), ("teacher_logprobs", q)):
                found[name] = logs.gather(-1, micro["responses"][..., None])[..., 0]
            ((found["reverse_kl"] * micro["response_mask"]).sum() / batch["response_mask"].sum()).backward()
            for name, value in found.items():
                parts.setdefault(name, []).append(value)
        whole = {name: torch.cat(values) for name, values in parts.items()}
        mask = batch["response_mask"]
        whole = {name: nested(value.detach(), mask) for name, value in whole.items()} if layout == "nested" else whole
        whole["response_mask"] = nested(mask, mask) if layout == "nested" else mask
        logged.append(overlap_metrics(**whole, vocabulary_size=40))
        topk_trace(**whole, step=step).save(tmp_path / "traces" / f"step-{step}.parquet")
        with torch.no_grad():
            for parameter in student.parameters():
                parameter -= 0.5 * parameter.grad
                parameter.grad = None
    rollouts = [
        {"id": str(i), "prompt_ids": p, "response_ids": r}
        for i, (p, r) in enumerate(zip(PROMPTS, RESPONSES, strict=True))
    ]
    for step, metrics in enumerate(logged):
        trace = opd_probe.replay(tmp_path / f"global_step_{step}", tmp_path / "teacher", rollouts, k=K)
        later = opd_probe.summarize(trace, K, resamples=0)
        for name in ("overlap_ratio", "overlap_advantage", "student_overlap_mass", "teacher_topk_mass", "reverse_kl",
                     "sampled_reward", "topk_reverse_kl_student", "response_length"):  # fmt: skip
            assert metrics[name] == pytest.approx(later[name], rel=2e-5, abs=2e-7), name
        assert metrics["n_states"] == later["n_states"] == sum(map(len, RESPONSES))
        kept = opd_probe.read_trace(tmp_path / "traces" / f"step-{step}.parquet")
        assert (kept.column("token_id") == trace.column("token_id")).all()
    assert logged[0]["reverse_kl"] != pytest.approx(logged[1]["reverse_kl"], rel=1e-3)

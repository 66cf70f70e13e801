"""What trainers and evaluations leave on disk, in the layout that each of them writes."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

Rows = list[dict[str, Any]]


def lines(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def verl_row(**change: Any) -> dict[str, Any]:
    row = {"input": "user\n3 4\nassistant\n", "output": "7 8", "gts": "7", "score": 1.0, "step": 5, "acc": True}
    return {**row, **change}


def verl(root: Path, rows: Rows | None = None) -> Path:
    for step in (5, 20):
        lines(root / "rollout_data" / f"{step}.jsonl", rows or [verl_row(step=step), verl_row(step=step, output="9")])
    return root / "rollout_data"


def opd_row(**change: Any) -> dict[str, Any]:
    return {"example_id": 0, "prompt": "3 4", "answer": "7", "seed": 0, "response": "so \\boxed{7}", **change}


def opd(root: Path, rows: Rows | None = None) -> Path:
    return lines(root / "aime24_t0.7_p0.95_n16-MNT31744.jsonl", rows or [opd_row(), opd_row(seed=1, response="8")])


def trl_row(**change: Any) -> dict[str, Any]:
    row = {
        "step": 1,
        "prompt": [{"role": "user", "content": "3 4"}],
        "completion": [{"role": "assistant", "content": "7 8"}],
        "accuracy_reward": 1.0,
        "solution": "7",
        "advantage": 0.5,
    }
    return {**row, **change}


def trl(root: Path, rows: Rows | None = None) -> Path:
    folder = root / "completions"
    folder.mkdir(parents=True)
    for step in (1, 2):
        table = pd.DataFrame(rows or [trl_row(step=step), trl_row(step=step, accuracy_reward=0.0)])
        table.to_parquet(folder / f"completions_{step:05d}.parquet")
    return folder


def swift_row(**change: Any) -> dict[str, Any]:
    row = {
        "step": ["3", "3"],
        "prompt": ["<|user|> 3 4 <|assistant|>", "<|user|> 5 6 <|assistant|>"],
        "completion": ["7 8", "9"],
        "MathAccuracy": [1.0, 0.0],
        "advantages": [0.5, -0.5],
        "solution": ["7", "11"],
        "entropy": [0.1, None],
    }
    return {**row, **change}


def swift(root: Path, rows: Rows | None = None) -> Path:
    return lines(root / "completions.jsonl", rows or [swift_row(), swift_row(step=["4", "4"], completion=["7", "8"])])


def slime_sample(**change: Any) -> dict[str, Any]:
    sample = {
        "group_index": 0,
        "index": 0,
        "rollout_id": None,
        "prompt": "3 4",
        "tokens": [3, 4, 5, 6, 7, 1],
        "multimodal_inputs": None,
        "response": "2 3 4",
        "response_length": 4,
        "label": "4",
        "reward": 1.0,
        "loss_mask": [1, 0, 1, 1],
        "weight_versions": ["3"],
        "rollout_log_probs": [-0.5, 0.0, -1.25, -0.25],
        "rollout_routed_experts": np.zeros((5, 2, 2), dtype=np.int32),
        "remove_sample": False,
        "teacher_log_probs": torch.tensor([-0.5, -2.0, -1.0, -0.125]),
        "status": "completed",
        "metadata": {},
        "spec_info": {"spec_accept_token_num": 0},
    }
    return {**sample, **change}


def slime(root: Path, rows: Rows | None = None) -> Path:
    folder = root / "rollout_data"
    folder.mkdir(parents=True)
    cut = slime_sample(index=1, status="truncated", loss_mask=None, reward=0.0, teacher_log_probs=None)
    given = rows or [slime_sample(), cut, slime_sample(status="aborted", tokens=[], response_length=0)]
    for number in (9, 10):
        torch.save({"rollout_id": number, "samples": given}, folder / f"{number}.pt")
    torch.save({"rollout_id": 9, "samples": given}, folder / "eval_9.pt")
    return folder


def open_instruct_row(**change: Any) -> dict[str, Any]:
    row = {
        "step": 2,
        "sample_idx": 0,
        "prompt_idx": 0,
        "prompt_tokens": [3, 4],
        "response_tokens": [5, 6, 1],
        "reward": 10.0,
        "advantage": 0.7,
        "finish_reason": "stop",
        "dataset": "math",
        "ground_truth": ["42"],
        "request_info": {"num_calls": 0, "tool_calleds": False},
        "logprobs": [-0.5, 0.0, float("nan")],
    }
    return {**row, **change}


def open_instruct(root: Path, rows: Rows | None = None) -> Path:
    lines(root / "saved" / "run_metadata.jsonl", [{"run_name": "run", "git_commit": "0", "model_name": "m"}])
    tool = open_instruct_row(sample_idx=1, request_info={"tool_calleds": True}, finish_reason="length", reward=0.0)
    lines(root / "saved" / "run_rollouts_000000.jsonl", rows or [open_instruct_row(), tool])
    return root / "saved"


def prime_rl_row(**change: Any) -> dict[str, Any]:
    row = {
        "schema_version": 1,
        "step": 7,
        "rank": 0,
        "micro_step": 0,
        "micro_sequence_idx": 0,
        "export_sequence_idx": 0,
        "env_name": "math",
        "token_ids": [3, 4, 5, 6, 7, 1],
        "position_ids": [0, 1, 2, 3, 4, 5],
        "loss_mask": [False, False, True, True, False, True],
        "advantages": [0.0, 0.0, 0.5, 0.5, 0.0, 0.5],
        "inference_logprobs": [0.0, 0.0, -0.5, -1.5, 0.0, None],
        "trainer_logprobs": [-4.0, -3.0, -0.5, -1.25, -2.0, -0.25],
        "entropy": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5],
        "rl_weights": [None] * 6,
        "ce_weights": [None] * 6,
        "ref_kl_weights": [None] * 6,
    }
    return {**row, **change}


def prime_rl(root: Path, rows: Rows | None = None) -> Path:
    for step in (7, 12):
        for rank in (0, 1):
            given = rows or [prime_rl_row(step=step, rank=rank)]
            lines(root / "token_exports" / f"step_{step}" / f"rank_{rank}.jsonl", given)
    return root / "token_exports"


def nemo_rl_row(**change: Any) -> dict[str, Any]:
    row = {
        "input_ids": [3, 4, 5, 6, 7, 1, 0, 0],
        "token_mask": [False, False, True, True, False, True, False, False],
        "input_length": 6,
        "reward": 1.0,
        "sample_loss_mask": 1.0,
        "sample_index": 0,
        "prompt_group_index": 0,
        "agent_ref": {"name": "math"},
    }
    return {**row, **change}


def nemo_rl(root: Path, rows: Rows | None = None) -> Path:
    folder = root / "exp_001"
    folder.mkdir(parents=True)
    for step in (2, 10):
        given = rows or [nemo_rl_row(), nemo_rl_row(reward=0.0, sample_index=1)]
        columns: dict[str, Any] = {name: [row[name] for row in given] for name in given[0]}
        tensors = {name: held if name == "agent_ref" else torch.tensor(held) for name, held in columns.items()}
        head = {"format_version": 1, "payload_type": "opd_topk_offline_inputs", "step": step, "k": 4}
        torch.save({**head, **tensors}, folder / f"opd_topk_offline_inputs_step{step}.pt")
        torch.save({"token_sample_index": torch.zeros(1), "step": step}, folder / f"opd_token_stats_step{step}.pt")
    return folder


def lm_eval_row(**change: Any) -> dict[str, Any]:
    row = {
        "doc_id": 0,
        "doc": {"question": "3 4"},
        "target": "3 + 4 = 7\n#### 7",
        "arguments": {"gen_args_0": {"arg_0": "Question: 3 4", "arg_1": {"until": ["Question:"]}}},
        "resps": [["#### 7"]],
        "filtered_resps": ["7"],
        "filter": "strict-match",
        "metrics": ["exact_match"],
        "doc_hash": "a",
        "prompt_hash": "b",
        "target_hash": "c",
        "exact_match": 1.0,
    }
    return {**row, **change}


def lm_eval(root: Path, rows: Rows | None = None) -> Path:
    strict = [lm_eval_row(), lm_eval_row(doc_id=1, resps=[["8"]], exact_match=0.0)]
    flexible = [{**row, "filter": "flexible-extract", "exact_match": 1.0} for row in strict]
    return lines(root / "samples_gsm8k_2026-08-01T00-00-00.jsonl", rows or [*strict, *flexible])


def lighteval_row(**change: Any) -> dict[str, Any]:
    row = {
        "doc": {"query": "3 4", "choices": ["7", "8"], "gold_index": 0, "id": "5", "task_name": "sums|0",
                "sampling_methods": ["GENERATIVE"], "num_samples": 1},
        "metric": {"em": 1},
        "model_response": {"input": None, "input_tokens": [0, 0, 3, 4], "text": ["7"], "output_tokens": [[7, 1, 0, 0]],
                           "logprobs": [], "truncated_tokens_count": 6, "padded_tokens_count": 2},
    }  # fmt: skip
    return {**row, **change}


def lighteval(root: Path, rows: Rows | None = None) -> Path:
    folder = root / "details" / "runs" / "checkpoint-40" / "2026-11-29T15-05-33"
    folder.mkdir(parents=True)
    other = lighteval_row(doc={**lighteval_row()["doc"], "id": "2"})
    file = folder / "details_sums|0_2026-11-29T15-05-33.parquet"
    pq.write_table(pa.Table.from_pylist(rows or [lighteval_row(), other]), file)
    return folder


def inspect_sample(**change: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "3 4", "source": "input"}, {"role": "assistant", "content": "7"}]
    choice = {"message": messages[1], "stop_reason": "stop", "logprobs": {"content": [{"token": "8", "logprob": -0.1}]}}
    row = {
        "id": 5, "epoch": 1, "input": "3 4", "target": "7", "messages": messages, "events": [], "metadata": {},
        "output": {"model": "m", "choices": [choice], "completion": "7"}, "scores": {"includes": {"value": "C"}},
    }  # fmt: skip
    return {**row, **change}


def inspect_ai(root: Path, rows: Rows | None = None) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    file = root / "2026-11-29T15-01-41-00-00_sums_ZFdrWwXS.eval"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("_journal/start.json", "{}")
        for number, row in enumerate(rows or [inspect_sample(), inspect_sample(epoch=2)]):
            archive.writestr(f"samples/{number}.json", json.dumps(row))
        config = {"model_generate_config": {"temperature": 0.7, "max_tokens": 8}}
        archive.writestr("header.json", json.dumps({"version": 2, "eval": config}))
    return file


def completion(**change: Any) -> dict[str, Any]:
    choice = {
        "index": 0,
        "text": "2 3",
        "logprobs": {
            "text_offset": [0, 1],
            "token_logprobs": [-0.5, -9999.0],
            "tokens": ["2", "3"],
            "top_logprobs": [],
        },
        "finish_reason": "length",
        "stop_reason": None,
        "token_ids": [5, 6],
        "prompt_logprobs": None,
        "prompt_token_ids": [3, 4],
    }
    return {"id": "cmpl-1", "object": "text_completion", "model": "m", "choices": [{**choice, **change}], "usage": {}}


def chat(**change: Any) -> dict[str, Any]:
    entries = [{"token": "2", "logprob": -0.5, "bytes": None, "top_logprobs": []}]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "2", "reasoning": None},
        "logprobs": {"content": entries},
        "finish_reason": "stop",
        "token_ids": [5],
    }
    body = {"id": "chatcmpl-1", "object": "chat.completion", "model": "m", "prompt_token_ids": [3, 4], "usage": {}}
    return {**body, "choices": [{**choice, **change}, {**choice, "index": 1}]}


def openai(root: Path, rows: Rows | None = None) -> Path:
    return lines(root / "responses.jsonl", rows or [completion(), chat()])


def native(root: Path, rows: Rows | None = None) -> Path:
    given = {"id": "a", "prompt_ids": [3, 4], "response_ids": [5, 6], "step": 3, "logprobs": [-1.0, None]}
    for name in ("one", "two"):
        lines(root / "ours" / f"{name}.jsonl", rows or [given])
    return root / "ours"


WRITERS: dict[str, Callable[..., Path]] = {
    "verl": verl,
    "opd-gen-vllm": opd,
    "trl": trl,
    "ms-swift": swift,
    "slime": slime,
    "open-instruct": open_instruct,
    "prime-rl": prime_rl,
    "nemo-rl": nemo_rl,
    "lm-eval": lm_eval,
    "lighteval": lighteval,
    "inspect-ai": inspect_ai,
    "openai": openai,
    "opd-probe": native,
}
"""For each kind, what writes a file or directory of it below a root: that of the layout, or rows that are given."""

"""Sampling responses through vLLM: token ids in and out, by the rules of our own sampler."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.errors import InputError, LogitError
from opd_probe.models.checkpoints import headers_of
from opd_probe.models.generation import Progress, check_sampling, make_rollout, stream_digest
from opd_probe.models.guards import one_line
from opd_probe.models.hub import localized
from opd_probe.models.outline import Outline
from opd_probe.models.samplers import check_vllm, sampler_version
from opd_probe.models.weights import read_config, type_to_load
from opd_probe.types import Checkpoint, Prompt, Rollout

LONGEST_LIST = 1024
"""vLLM takes no more ids in one list of a request."""

LEAST_CACHE = 2**30
"""Bytes of keys and values that vLLM's engine is given on a CPU, at least."""


def sample_with_vllm(
    student: Outline,
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt],
    *,
    allowed_ids: NDArray[np.int64] | None = None,
    num_rollouts: int = 4,
    max_new_tokens: int = 1024,
    temperature: float = 1.0,
    seed: int = 0,
    dtype: str | None = None,
    step: int | None = None,
    progress: Progress | None = None,
) -> list[Rollout]:
    """Sample as :func:`sample_rollouts` does, with vLLM's engine, which is gone when this returns.

    The distribution that is sampled from is the same, up to the rounding of vLLM's matrix products, and so is what a
    rollout holds. The draws are others: each rollout has a seed of its own, from (seed, prompt id, sample), and vLLM
    makes of it what its version and its device do.

    Args:
        student: the outline of ``checkpoint``.
        dtype: of the weights; None: as stored.

    Raises:
        InputError: as :func:`sample_rollouts`; or vLLM cannot sample from the checkpoint.
        LogitError: the model gives logits that are not finite.
    """
    local = localized(checkpoint)
    check_vllm(local, dtype=dtype, temperature=temperature)
    check_sampling(student, prompts, num_rollouts, max_new_tokens, temperature)
    wanted = [(prompt, sample) for prompt in prompts for sample in range(num_rollouts)]
    shared: dict[str, Any] = {
        "temperature": temperature,
        "max_tokens": max_new_tokens,
        "stop_token_ids": list(student.eos_ids),
        **restriction(allowed_ids, student.width),
    }
    seeds = [rollout_seed(seed, prompt.id, sample) for prompt, sample in wanted]
    longest = max(len(prompt.ids or ()) for prompt in prompts) + max_new_tokens
    with _engine(local, dtype, longest) as engine, one_line(f"sampler vllm, checkpoint {local.path}", "gave up"):
        outputs = _run(engine, [prompt for prompt, _ in wanted], seeds, shared, progress)
    made_by = sampler_version("vllm")
    rollouts = []
    for (prompt, sample), output in zip(wanted, outputs, strict=True):
        ids = [int(token) for token in output.token_ids]
        logprobs = [float(entry[token].logprob) for token, entry in zip(ids, output.logprobs, strict=True)]
        rollout = make_rollout(
            student, prompt, sample, ids, logprobs, sampler=made_by, temperature=temperature, step=step
        )
        _check_whole(rollout, output.finish_reason, max_new_tokens, student.name)
        rollouts.append(rollout)
    return rollouts


def restriction(allowed_ids: NDArray[np.int64] | None, width: int) -> dict[str, Any]:
    """The parameters of a request that keep vLLM to ``allowed_ids``: by naming these or, if they are fewer, the others.

    Raises:
        InputError: vLLM takes neither list.
    """
    if allowed_ids is None or len(allowed_ids) == width:
        return {}
    others = np.setdiff1d(np.arange(width), allowed_ids)
    if len(allowed_ids) < len(others) and len(allowed_ids) <= LONGEST_LIST:
        return {"allowed_token_ids": allowed_ids.tolist()}
    if len(others) <= LONGEST_LIST:
        return {"logit_bias": dict.fromkeys(others.tolist(), -math.inf)}
    raise InputError(
        f"sampler vllm: {len(others)} of the student's {width} ids are not shared with the teachers; vLLM can leave "
        f"out {LONGEST_LIST} at most; use --sampler transformers"
    )


def rollout_seed(seed: int, prompt_id: str, sample: int) -> int:
    """The seed of one rollout in [0, 2⁶³), from what its stream derives from in :func:`sample_rollouts`."""
    return int.from_bytes(stream_digest(seed, prompt_id, sample)[:8], "little") >> 1


@contextmanager
def _engine(checkpoint: Checkpoint, dtype: str | None, longest: int) -> Iterator[Any]:
    """vLLM's engine with the checkpoint's weights; gone, memory and all, after the block.

    Args:
        longest: tokens of the longest sequence, prompt and response.
    """
    with one_line(f"sampler vllm, checkpoint {checkpoint.path}"):
        from vllm import LLM
        from vllm.platforms import current_platform

        stored = type_to_load(headers_of(checkpoint), read_config(Path(checkpoint.path)))
        engine = LLM(
            model=checkpoint.path,
            skip_tokenizer_init=True,
            generation_config="vllm",  # not the checkpoint's, which may ask for top-p and the like
            dtype=dtype or str(stored).removeprefix("torch."),  # left to itself it would halve float32
            max_model_len=longest,
            logprobs_mode="processed_logprobs",  # of the distribution that is sampled from
            disable_log_stats=True,
            **_own_memory(current_platform.is_cpu()),
        ).llm_engine
    try:
        yield engine
    finally:
        engine.engine_core.shutdown()
        del engine
        gc.collect()


def _own_memory(cpu: bool) -> dict[str, int]:
    """What limits the engine's memory where it shares it with everything else: left to itself it wants nine tenths of a
    machine, and ends where less is free.

    Args:
        cpu: whether it runs on the CPU.
    """
    if not cpu:
        return {}
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"kv_cache_memory_bytes": max(free // 4, LEAST_CACHE)}


def _run(
    engine: Any, prompts: Sequence[Prompt], seeds: Sequence[int], shared: dict[str, Any], progress: Progress | None
) -> list[Any]:
    """What the engine made of each prompt, in their order."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        how = SamplingParams(
            **shared,
            seed=seed,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            ignore_eos=True,  # of the EOS that vLLM finds by itself; stop_token_ids hold
            logprobs=0,  # of the sampled token alone
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        engine.add_request(str(number), {"prompt_token_ids": list(prompt.ids or ())}, how)
    outputs: dict[int, Any] = {}
    while True:
        if progress is not None:
            progress(len(outputs), len(prompts))
        if not engine.has_unfinished_requests():
            return [outputs[number] for number in range(len(prompts))]
        for output in engine.step():
            if output.finished:
                outputs[int(output.request_id)] = output.outputs[0]


def _check_whole(rollout: Rollout, reason: str | None, max_new_tokens: int, name: str) -> None:
    if not all(map(math.isfinite, rollout.logprobs or ())):
        raise LogitError(f"rollout {rollout.id!r}: {name} gives logits that are not finite; check its weights")
    if rollout.finish_reason == "length" and len(rollout.response_ids) < max_new_tokens:
        raise InputError(
            f"sampler vllm, rollout {rollout.id!r}: ended after {len(rollout.response_ids)} tokens without EOS "
            f"(vLLM says {reason}); expected {max_new_tokens}; use --sampler transformers"
        )

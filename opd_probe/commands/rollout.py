"""``opd-probe rollout``: sample from the checkpoints of a run and store what came of it."""

from __future__ import annotations

from contextlib import suppress

from opd_probe.commands.result import Result
from opd_probe.jobs.files import Files
from opd_probe.jobs.plan import make_sampling_plan
from opd_probe.jobs.pool import ModelPool
from opd_probe.jobs.sampling import drafts_path, draw, named_by_step, sampling_key
from opd_probe.options.request import Request
from opd_probe.progress import Progress
from opd_probe.results.tables import json_row
from opd_probe.rollouts.files import write_rollouts
from opd_probe.types import Rollout

COLUMNS = ("run", "step", "n_prompts", "n_rollouts", "n_tokens", "truncation_rate")


def rollout(request: Request, progress: Progress) -> Result:
    """Sample responses to prompts from every checkpoint of one run into one rollout file.

    Each rollout carries the step of its checkpoint; with several checkpoints its id starts with it.

    Raises:
        OpdProbeError: bad input, in one line.
    """
    plan = make_sampling_plan(request)
    (run,) = plan.runs
    prompts = Files(plan.runs).prompts(run)
    pool = ModelPool(progress)
    everything: list[Rollout] = []
    rows = []
    for checkpoint in run.run.checkpoints:
        # Of a teacher only its vocabulary and its positions matter here, so that none is loaded.
        teachers = [pool.teacher_outline(run, teacher.checkpoint) for teacher in run.teachers]
        student, drafts = pool.sampled_student(run, checkpoint), drafts_path(plan.out, checkpoint)
        key = sampling_key(checkpoint, [one.checkpoint for one in run.teachers], prompts, run.settings, run.tokenizer)
        rollouts = draw(student, teachers, checkpoint, prompts, run.settings, progress, drafts, key)
        rows.append(
            json_row(
                {
                    "run": run.run.name,
                    "step": checkpoint.step,
                    "n_prompts": len(prompts),
                    "n_rollouts": len(rollouts),
                    "n_tokens": sum(len(one.response_ids) for one in rollouts),
                    "truncation_rate": sum(r.finish_reason == "length" for r in rollouts) / len(rollouts),
                }
            )
        )
        everything += named_by_step(rollouts, checkpoint) if len(run.run.checkpoints) > 1 else rollouts
    write_rollouts(plan.out, everything)
    for checkpoint in run.run.checkpoints:
        with suppress(OSError):  # what is left there is of no harm
            drafts_path(plan.out, checkpoint).unlink(missing_ok=True)
    return Result(rows, COLUMNS, plan.format, (plan.out,))

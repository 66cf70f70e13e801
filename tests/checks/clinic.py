"""A healthy pair with a handful of rollouts, in real files; and ways to plant a fault in a copy of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import opd_probe
from opd_probe.checks import Finding
from opd_probe.lab.demo import SHIPPED
from opd_probe.lab.models import load_model, save_model
from opd_probe.lab.task import FRAMES, sample_problems, seeded
from opd_probe.models.generation import sample_rollouts
from opd_probe.models.loading import LoadedModel
from opd_probe.models.loading import load_model as load_for_replay
from opd_probe.rollouts.files import read_rollouts, write_rollouts
from opd_probe.rollouts.prompts import encode_prompts
from opd_probe.types import Prompt, Rollout

MEMBERS = {"student": "student", "teacher": "compatible-teacher", "stranger": "incompatible-teacher"}
SETTINGS: dict[str, Any] = {"k": 32, "repetition_length": 100}
"""A vocabulary of 500 words is flatter than a real one, and its responses are shorter."""


def template(frame: str) -> str:
    """The chat template that renders a story and asks for ``frame`` at its end."""
    return (
        "{% for message in messages %}{{ message['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}" + FRAMES[frame] + "{% endif %}"
    )


@dataclass(frozen=True)
class Clinic:
    """``student``, ``teacher``, ``stranger`` (a teacher of another thinking pattern) and ``rollouts.jsonl``.

    ``models`` are the first three, loaded.
    """

    root: Path
    rollouts: tuple[Rollout, ...]
    models: Mapping[str, LoadedModel]

    def findings(
        self, rollouts: Sequence[Rollout] | None = None, *, student: Any = None, teacher: Any = None, **more: Any
    ) -> dict[str, Finding]:
        """The checklist by name, of the healthy pair unless told otherwise."""
        found = opd_probe.doctor(
            student or self.models["student"],
            teacher or self.models["teacher"],
            self.rollouts if rollouts is None else rollouts,
            **{**SETTINGS, **more},
        )
        return {finding.check: finding for finding in found}

    def altered(self, change: Callable[[Rollout], Rollout]) -> list[Rollout]:
        """The rollouts with a fault in each."""
        return [change(rollout) for rollout in self.rollouts]

    def copy(self, member: str, place: Path) -> Path:
        """A copy of a model's directory, to plant a fault in."""
        return Path(shutil.copytree(self.root / member, place / member))


def build(root: Path) -> Clinic:
    """The shipped models of the lab in float32 with a chat template, and 16 rollouts of the student that carry
    messages, the sampler's log-probabilities and the teacher's."""
    for member, shipped in MEMBERS.items():
        save_model(load_model(SHIPPED / shipped), root / member)
        (root / member / "chat_template.jinja").write_text(template("total"))
    models = {member: load_for_replay(root / member) for member in MEMBERS}
    rollouts = sampled(models["student"], max_new_tokens=40)
    trace = opd_probe.replay(models["student"], models["teacher"], rollouts, k=1)
    scores, ends = trace.column("teacher_logprob"), trace.rollout_offsets
    rollouts = [
        replace(rollout, extra={**rollout.extra, "teacher_logprobs": scores[ends[i] : ends[i + 1]].tolist()})
        for i, rollout in enumerate(rollouts)
    ]
    write_rollouts(root / "rollouts.jsonl", rollouts)
    return Clinic(root, tuple(read_rollouts(root / "rollouts.jsonl")), models)


def prompts(count: int) -> list[Prompt]:
    """Problems as chat messages; the template adds what they ask for."""
    problems = sample_problems(seeded(7, "clinic"), count)
    return [
        Prompt(f"p{n}", messages=({"role": "user", "content": problem.prompt.removesuffix(f" {FRAMES['total']}")},))
        for n, problem in enumerate(problems)
    ]


def sampled(student: LoadedModel, count: int = 8, num_rollouts: int = 2, **how: Any) -> list[Rollout]:
    """Responses of the student to ``count`` prompts."""
    talks = {prompt.id: prompt.messages for prompt in prompts(count)}
    encoded = encode_prompts(prompts(count), student.tokenizer)
    made = sample_rollouts(student, encoded, num_rollouts=num_rollouts, **how)
    return [replace(rollout, extra={"messages": list(talks[str(rollout.prompt_id)] or ())}) for rollout in made]


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file in place."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_weights(directory: Path, change: Callable[[Any], None]) -> Path:
    """Change a saved model in place; its tokenizer and template stay."""
    model: Any = load_model(directory)
    with torch.no_grad():
        change(model)
    model.save_pretrained(directory)
    return directory


def embedding(model: Any) -> torch.Tensor:
    """The matrix that is embedding and output layer in one."""
    weight: torch.Tensor = model.get_input_embeddings().weight
    return weight

"""Does padding, or a token that two wrote, stand where no model sampled?"""

from __future__ import annotations

from opd_probe.checks.evidence import Evidence, Skip, share
from opd_probe.checks.registry import Verdict, grade, register
from opd_probe.rollouts.padding import MARK


@register(
    "padding",
    measures="rollouts whose prompt or response begins or ends in the pad token: padding that was stripped, proved by "
    "a mask or by the shape of its batch, and what nothing proves",
    rule="fail: any that is not proved: it is read as context and counted as states; warn: any that was stripped",
    advice="dump ids without the padding of their batch, or attention_mask beside them",
    known_from="batches that were dumped as they stood",
)
def padding(evidence: Evidence) -> Verdict:
    found = [rollout.extra.get(MARK) or {} for rollout in evidence.rollouts]
    stripped, unproved = ([one.get(name, 0) for one in found] for name in ("stripped", "unproved"))
    values = {"n_unproved": sum(map(bool, unproved)), "n_stripped": sum(map(bool, stripped)), "n": len(found)}
    figure = (
        f"{values['n_unproved']} of {len(found)} rollouts have pad tokens at an end that nothing proves to be padding "
        f"({sum(unproved):,} tokens), {values['n_stripped']} had padding that was stripped ({sum(stripped):,} tokens)"
    )
    return Verdict(grade(fail=any(unproved), warn=any(stripped)), figure, values)


@register(
    "double_bos",
    measures="share of prompts that begin with BOS twice",
    rule="fail: any: chat template and tokenizer both add it, and no model was trained on two",
    advice="encode what a chat template rendered with add_special_tokens=False; replay under the prompts that the "
    "trainer used only if the student was sampled under them",
    known_from="many trainers",
)
def double_bos(evidence: Evidence) -> Verdict:
    bos = getattr(evidence.student.tokenizer, "bos_token_id", None)
    if evidence.student.tokenizer is None:
        raise Skip("the student has no tokenizer")
    if bos is None:
        return Verdict("ok", "the student's tokenizer has no BOS", {"share_doubled": 0.0, "n": len(evidence.rollouts)})
    doubled = sum(tuple(rollout.prompt_ids[:2]) == (bos, bos) for rollout in evidence.rollouts)
    part = share(doubled, len(evidence.rollouts))
    figure = (
        f"{doubled} of {len(evidence.rollouts)} prompts ({part:.0%}) begin with {evidence.student.label(bos)} twice"
    )
    return Verdict(grade(fail=doubled > 0, warn=False), figure, {"share_doubled": part, "n": len(evidence.rollouts)})

"""Do both models mean the same by an id, and do they end a response alike?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from opd_probe.checks.evidence import Evidence, Side, Skip, reward, share
from opd_probe.checks.registry import Verdict, register
from opd_probe.models.vocabulary import differing_ids, special_ids
from opd_probe.texts import parse_json

OUTSIDE_LIMIT = 0.01
"""Mean probability outside the shared vocabulary from which it is worth a warning; trainers' issues name 1 %."""

PIECES = 3
"""Tokens that are shown from where two tokenizers part."""

ENDING_FLOOR = float(np.log(0.05))
"""Mean r at EOS, in nats, below which the teacher gives it less than a twentieth of the student's probability."""


@register(
    "tokenizers",
    measures="ids that stand for two different strings, and the first of them",
    rule="fail: any, since the teacher would score other words than the student wrote; warn: special tokens alone, "
    "left out with --allow-special-mismatch",
    advice="take a teacher with the student's tokenizer, or give the tokenizer that both were trained with by "
    "--tokenizer; the same number of ids proves nothing",
    known_from="trl#4562, SkyRL PR#2256",
)
def tokenizers(evidence: Evidence) -> Verdict:
    first, second = evidence.student.tokenizer, evidence.teacher.tokenizer
    if first is None or second is None:
        who = "student" if first is None else "teacher"
        raise Skip(f"the {who} has no tokenizer; ids are assumed to mean the same below the smaller width")
    differing = differing_ids(first, second)
    values = {"n_differing": len(differing), "first_id": differing[0][0] if differing else None}
    if not differing:
        size = evidence.vocabulary.size if evidence.vocabulary else 0
        if not size:
            return Verdict("fail", evidence.missing.get("vocabulary", "no id is shared"), values)
        return Verdict("ok", f"all {size:,} shared ids stand for the same string in both", values)
    token, left, right = differing[0]
    figure = f"{len(differing):,} ids differ, the first is {token}: {left!r} (student), {right!r} (teacher)"
    return Verdict("fail" if evidence.vocabulary is None else "warn", figure, values)


@register(
    "pieces",
    measures="share of prompts and responses, as text, of which both tokenizers make the same ids, and the first piece "
    "where they part",
    rule="warn: below 1: ids may mean the same in both, but a text is normalised or split another way, so that the "
    "teacher never saw it in the student's pieces",
    advice="use one tokenizer directory for both; where trainers re-tokenise text, take the ids that were sampled",
    known_from="many trainers",
)
def pieces(evidence: Evidence) -> Verdict:
    first, second = evidence.student.tokenizer, evidence.teacher.tokenizer
    if first is None or second is None:
        raise Skip(f"the {'student' if first is None else 'teacher'} has no tokenizer")
    both = (ids for rollout in evidence.rollouts for ids in (rollout.prompt_ids, rollout.response_ids))
    texts = [str(first.decode([token for token in ids if 0 <= token < len(first)])) for ids in both]
    split = [
        tuple(tokenizer(text, add_special_tokens=False)["input_ids"] for tokenizer in (first, second)) for text in texts
    ]
    differing = [pair for pair in split if pair[0] != pair[1]]
    equal = share(len(texts) - len(differing), len(texts))
    values: dict[str, Any] = {"share_equal": equal, "n": len(texts)}
    if not differing:
        return Verdict("ok", f"both make the same ids of {len(texts)} texts", values)
    left, right = differing[0]
    place = next(
        (n for n, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), min(map(len, (left, right)))
    )
    shown = [_piece(tokenizer, ids[place : place + PIECES]) for tokenizer, ids in ((first, left), (second, right))]
    values |= {"student_piece": shown[0], "teacher_piece": shown[1], "differing_parts": _differing(first, second)}
    parts = values["differing_parts"]
    by = f", by their {' and '.join(parts)}" if parts else ""
    figure = (
        f"{len(differing)} of {len(texts)} texts become other ids{by}; the first part at token {place}: {shown[0]} "
        f"(student), {shown[1]} (teacher)"
    )
    return Verdict("warn", figure, values)


def _piece(tokenizer: Any, ids: Sequence[int]) -> str:
    return " ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(list(ids))) or "nothing"


def _differing(first: Any, second: Any) -> list[str]:
    """The stages of two tokenizers that are set differently, in words."""
    inner = [getattr(tokenizer, "backend_tokenizer", None) for tokenizer in (first, second)]
    stages = [parse_json(one.to_str()) for one in inner if one is not None]
    if len(stages) < len(inner):  # of the older kind, which does not tell
        return []
    names = {"normalizer": "normalizer", "pre_tokenizer": "pre-tokenizer", "model": "model"}
    return [name for field, name in names.items() if stages[0].get(field) != stages[1].get(field)]


@register(
    "vocabulary",
    measures="width of both output layers, ids that both tokenizers know, and the mean probability that each model "
    "puts outside them (on padding rows, and on tokens of one model alone)",
    rule="warn: more than 1 % on either side; what lies outside is left out of every metric and both sides are "
    "renormalised, which is harmless as long as it is rounding",
    advice="trim both output layers to the shared tokens before the loss is taken, as opd-probe does",
    known_from="trl#3028, trl#2215, torchtune#2119",
)
def vocabulary(evidence: Evidence) -> Verdict:
    outside = {side: float(np.mean(evidence.column(f"{side}_mass_outside"))) for side in ("student", "teacher")}
    widths = evidence.student.width, evidence.teacher.width
    size = 0 if evidence.vocabulary is None else evidence.vocabulary.size
    values: dict[str, Any] = {"student_width": widths[0], "teacher_width": widths[1], "shared": size}
    values |= {f"{side}_mass_outside": mass for side, mass in outside.items()}
    rows = ["unknown" if width is None else f"{width:,}" for width in widths]
    shares = ["unknown" if np.isnan(mass) else f"{mass:.2%}" for mass in outside.values()]
    figure = (
        f"{rows[0]} rows (student), {rows[1]} (teacher), {size:,} shared; outside them lie {shares[0]} and "
        f"{shares[1]} of the probability"
    )
    return Verdict("warn" if np.nanmax(list(outside.values())) > OUTSIDE_LIMIT else "ok", figure, values)


@register(
    "eos",
    measures="EOS ids in generation_config and tokenizer of both models side by side",
    rule="fail: student and teacher have none in common; warn: their sets differ, or a tokenizer's EOS is not in its "
    "own generation_config",
    advice="let sampling stop at the ids that the teacher was trained to end with: write the same eos_token_id into "
    "generation_config.json and tokenizer of both",
    known_from="ms-swift#9526",
)
def eos(evidence: Evidence) -> Verdict:
    sides = {"student": evidence.student, "teacher": evidence.teacher}
    figure = "; ".join(f"{name}: {_eos_words(side)}" for name, side in sides.items())
    values: dict[str, Any] = {f"{name}_generation_config": list(side.generation_eos) for name, side in sides.items()}
    values |= {f"{name}_tokenizer": _tokenizer_eos(side) for name, side in sides.items()}
    first, second = (set(side.eos_ids) for side in sides.values())
    if not first or not second:
        raise Skip(f"{figure}; without an EOS id there is nothing to compare")
    if not first & second:
        return Verdict("fail", figure, values)
    split = any(
        side.generation_eos and _tokenizer_eos(side) not in (None, *side.generation_eos) for side in sides.values()
    )
    known = not evidence.teacher.served  # of a server's generation_config nothing is known
    return Verdict("warn" if (known and first != second) or split else "ok", figure, values)


def _tokenizer_eos(side: Side) -> int | None:
    return None if side.tokenizer is None else side.tokenizer.eos_token_id


def _eos_words(side: Side) -> str:
    own = _tokenizer_eos(side)
    config = ", ".join(side.label(token) for token in side.generation_eos) or "none"
    return f"{config} in generation_config, {'none' if own is None else side.label(own)} in the tokenizer"


@register(
    "ending",
    measures="mean r at the EOS that ends a response",
    rule="warn: below log 0.05 = −3.0 nats: the teacher gives the student's EOS less than a twentieth of its "
    "probability, so that distillation teaches not to stop",
    advice="compare the EOS ids above, and where in a response the teacher would have ended it",
    known_from="ms-swift#9526",
)
def ending(evidence: Evidence) -> Verdict:
    ends: list[float] = []
    for index, columns in evidence.replayed().items():
        at = np.flatnonzero(columns["position"] == evidence.end(index))
        ends += reward(columns)[at].tolist()
    known = np.array([value for value in ends if not np.isnan(value)])
    if not len(known):
        raise Skip("no replayed response ends with an EOS that is counted and shared")
    mean = float(known.mean())
    figure = f"r = {mean:+.2f} nats at EOS, mean over {len(known)} responses"
    return Verdict("warn" if mean < ENDING_FLOOR else "ok", figure, {"reward_at_eos": mean, "n": len(known)})


@register(
    "special_tokens",
    measures="BOS, pad and the other special ids of both tokenizers side by side",
    rule="warn: a special id of the one is none of the other's, or BOS or pad differ; what decodes to nothing in the "
    "one is text in the other",
    advice="use one tokenizer directory for both; where pad is EOS, see that the mask is made from lengths and not "
    "from ids",
    known_from="ms-swift#9526, OPSD#30",
)
def special_tokens(evidence: Evidence) -> Verdict:
    first, second = evidence.student.tokenizer, evidence.teacher.tokenizer
    if first is None or second is None:
        raise Skip(f"the {'student' if first is None else 'teacher'} has no tokenizer")
    alone = sorted(special_ids(first) ^ special_ids(second))
    named = {name: (_named(first, name), _named(second, name)) for name in ("bos", "pad")}
    split = {name: pair for name, pair in named.items() if pair[0] != pair[1]}
    values: dict[str, Any] = {"special_in_one": alone, "pad_is_eos": first.pad_token_id in evidence.student.eos_ids}
    values |= {
        f"{side}_{name}": pair[n] for name, pair in named.items() for n, side in enumerate(("student", "teacher"))
    }
    parts = [f"{name} {pair[0]} (student), {pair[1]} (teacher)" for name, pair in split.items()]
    if alone:
        shown = ", ".join(evidence.student.label(token) for token in alone[:3])
        parts.append(f"{len(alone)} ids are special in one alone: {shown}{', …' if len(alone) > 3 else ''}")
    pad = "; the student's pad is EOS" if values["pad_is_eos"] else ""
    if parts:
        return Verdict("warn", "; ".join(parts) + pad, values)
    return Verdict("ok", f"the same {len(special_ids(first))} special ids, BOS and pad in both{pad}", values)


def _named(tokenizer: Any, name: str) -> int | None:
    token: int | None = getattr(tokenizer, f"{name}_token_id")
    return token

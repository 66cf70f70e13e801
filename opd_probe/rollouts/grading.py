"""Whether a response's final answer is the reference answer."""

from __future__ import annotations

import logging
import re
import threading
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from opd_probe.rollouts.fields import ANSWERS
from opd_probe.types import Rollout

_THOUSANDS = r"\d{1,3}(?:,\d{3})+(?!\d)"
# A sign behind a digit is an operator, and 1/2 is one number.
_NUMBER = re.compile(rf"(?:(?<![\w)])[-+])?(?:{_THOUSANDS}|\d+)(?:\.\d+)?(?:/\d+)?")
_SEPARATED = re.compile(rf"[-+]?{_THOUSANDS}(?:\.\d+)?")
_LARGEST_EXPONENT = 400
_EXPLOSIVE = re.compile(r"\^[^^]*\^|\^\s*\{?\s*-?\d{5,}|\d{4,}\s*!|!\s*!|\d{3,}\s*\)\s*!")


def grade_rollout(rollout: Rollout, response: str) -> bool:
    """Whether the final answer of a rollout's response is one of its reference answers.

    Args:
        response: its text, which not every rollout has beside its ids.
    """
    answers = rollout.extra.get(ANSWERS) or ([] if rollout.answer is None else [rollout.answer])
    return any(grade(response, answer) for answer in answers)


def grade(response: str, answer: str) -> bool:
    """Whether the final answer of a response equals the reference answer.

    The final answer is the content of the last ``\\boxed{…}``, else the last number. Equal strings or equal numbers
    decide at once; what is left (fractions, expressions) is decided by math-verify.
    """
    boxed = _last_boxed(response)
    final = boxed if boxed is not None else _last_number(response)
    wanted = answer.strip()
    if final is not None:
        if final.strip() == wanted:
            return True
        left, right = _number(final), _number(wanted)
        if left is not None and right is not None:
            return left == right
    if boxed is None and _number(wanted) is not None and "\\" not in response:
        return False
    return _verify(response, wanted)


def _last_boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for index in range(start + len("\\boxed"), len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return text[start + len("\\boxed{") : index]
    return None


def _last_number(text: str) -> str | None:
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def _number(text: str) -> Fraction | None:
    top, slash, bottom = text.strip().strip("$").partition("/")
    if _SEPARATED.fullmatch(top):
        top = top.replace(",", "")
    try:
        value, divisor = Decimal(top), Decimal(bottom if slash else 1)
    except InvalidOperation:
        return None
    sane = all(part.is_finite() and abs(part.adjusted()) <= _LARGEST_EXPONENT for part in (value, divisor))
    return Fraction(value) / Fraction(divisor) if sane and divisor != 0 else None


def _verify(response: str, answer: str) -> bool:
    from math_verify import parse, verify

    # Its time-outs rest on signals, which only the main thread may set; elsewhere what could take for ever is wrong.
    limit = 5 if threading.current_thread() is threading.main_thread() else None
    if limit is None and _EXPLOSIVE.search(response):
        return False
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # a time-out is an answer too
    gold = parse(f"${answer}$", parsing_timeout=limit)
    return bool(verify(gold, parse(response, parsing_timeout=limit), timeout_seconds=limit))

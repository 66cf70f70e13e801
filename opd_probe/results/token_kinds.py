"""Kinds of tokens, to see what a change of the overlap is made of."""

from __future__ import annotations

from collections.abc import Collection

from opd_probe.models.decoding import Decoder

KINDS = {
    "digits": "digits and numbers",
    "reasoning": "words of reasoning",
    "words": "other words and parts of words",
    "symbols": "signs and operators",
    "layout": "white space, line breaks and marks of layout",
    "specials": "special tokens",
    "unnamed": "ids that no tokenizer names",
}
"""Every kind, and what it is called."""

_WORDS = """
    so thus hence therefore then because since if but however although though while instead otherwise else wait hmm
    hm okay ok alternatively maybe perhaps actually first second third next finally now again let lets let's we i
    need must should want have know think recall remember suppose assume consider note notice check verify confirm
    compute calculate simplify substitute solve find means implies gives get total answer result equals step steps
    why how which either or and not no yes right wrong correct mistake
"""
REASONING = frozenset(_WORDS.split())
"""English words that carry an argument on. Other languages count as other words."""

_LAYOUT = set("#*_`|>-=~•")
_MARKS = {"**", "***", "__", "|", "```", "`", "•"}


def kind_of(token: int, decoder: Decoder, specials: Collection[int]) -> str:
    """Which of :data:`KINDS` a token is; by its text alone, wherever it stands."""
    if token in specials:
        return "specials"
    if decoder.tokenizer is None:
        return "unnamed"
    text = decoder.decode([token])
    bare = text.strip()
    breaks = "\n" in text and not any(sign.isalnum() for sign in bare)
    if not bare or breaks or bare in _MARKS or (len(bare) > 1 and set(bare) <= _LAYOUT):
        return "layout"
    if any(sign.isdigit() for sign in bare) and not any(sign.isalpha() for sign in bare):
        return "digits"
    if bare.lower().strip(".,:;!?") in REASONING:
        return "reasoning"
    return "words" if any(sign.isalpha() for sign in bare) else "symbols"

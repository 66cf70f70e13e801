"""What names of directories say of the training step: by words of their own, or by the number that tells them apart.

Names alone are read here; what lies in a directory is looked at by the one who asks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from opd_probe.errors import InputError

Unit = Literal["step", "epoch"]

_PREFIX = r"(?P<prefix>(?:(?:hf|model|weights|policy|actor|student|lora|adapter|megatron|fsdp|stage\d+)[-_.])*)"
_SUFFIX = (
    r"(?P<suffix>(?:[-_.](?:unsharded|sharded|hf|huggingface|merged|lora|adapter|model|weights|tokens?\d+[KMBT]?))*)"
)
_AFTER_EPOCH = r"(?:epochs?[-_=. ]?\d+[-_. ])?"
_DIGITS = r"(?P<number>\d{1,18})"
_STEP = rf"{_PREFIX}{_AFTER_EPOCH}(?:checkpoint|ckpt|global[-_]?step|steps?|iter(?:ation)?)[-_=. ]?"
_EPOCH = rf"{_PREFIX}(?:(?:checkpoint|ckpt)[-_])?(?:epochs?|ep)[-_=. ]?"
_WORDS: tuple[tuple[Unit, re.Pattern[str]], ...] = (
    ("step", re.compile(f"{_STEP}{_DIGITS}{_SUFFIX}", re.IGNORECASE)),
    ("epoch", re.compile(f"{_EPOCH}{_DIGITS}{_SUFFIX}", re.IGNORECASE)),
    ("step", re.compile(f"(?P<prefix>){_DIGITS}{_SUFFIX}", re.IGNORECASE)),
)
"""Names that say their step by themselves; a step beside an epoch wins."""

_AT_THE_END = re.compile(
    r"(?:^|[^A-Za-z])((?:checkpoint|ckpt|global[-_]?step|steps?|iter(?:ation)?|epochs?|ep)[-_=. ]?\d{1,18}"
    r"(?:[-_.](?:unsharded|sharded|hf|merged|lora|adapter))?)$",
    re.IGNORECASE,
)

_NUMBER = re.compile(r"(?<!\d)(?<!\d\.)(?<!\d[eE])(?<!\d[eE][-+])\d+(?![\d.]*\d|[A-Za-z])")
_DATE = re.compile(r"(?:19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d(?:[-_.T]?[0-2]\d[-_.:h]?[0-5]\d(?:[-_.:m]?[0-5]\d)?)?")
_NO_STEP = re.compile(
    r"(?:^|[^A-Za-z])(?:seed|run|trial|fold|exp(?:eriment)?|version|ver|v|rank|lora|r|lr|alpha|beta|temp(?:erature)?|"
    r"t|k|top_?k|fsdp|stage|part|shard|replica|worker|node|job|id|try|attempt|variant|config|cfg|optimizer|optim|n|bs|batch|gpus?|layers?|"
    r"teacher|phi|qwen|llama|gemma|olmo|glm|gpt|mistral|deepseek)[-_=.]?$",
    re.IGNORECASE,
)
"""What stands before a number that is none of a step."""

_MOVES_ALONG = re.compile(r"[-_.]tokens?\d+[KMBT]?", re.IGNORECASE)
"""Of a name that says its step, what grows with it."""


@dataclass(frozen=True, slots=True)
class StepName:
    """What a name says of the step.

    Attributes:
        step: the number.
        unit: what it counts.
        stem: the name with ``N`` in the number's place, words for a step being one word; names of one run have it in
            common.
        plain: whether the name is of a step and nothing else, so that the directory around it stands for the run.
        source: how it was read, in words.
        asked: whether the user said how it is read.
        bare: whether the name is little else than the number, so that it may also be that of a run.
    """

    step: int
    unit: Unit
    stem: str
    plain: bool
    source: str
    asked: bool = False
    bare: bool = False


def step_name(name: str) -> StepName | None:
    """What a name says by itself (``checkpoint-5``, ``hf_iter_0000010``, ``epoch_1``, ``000010``); None: nothing."""
    if _DATE.fullmatch(name) is not None:
        return None
    for unit, words in _WORDS:
        if (match := words.fullmatch(name)) is not None:
            stem = f"{match['prefix']}{unit}_N{_MOVES_ALONG.sub('', match['suffix'])}"
            return StepName(int(match["number"]), unit, stem, True, f"{unit} in its name", bare=name[0].isdigit())
    return None


def named_step(name: str, pattern: re.Pattern[str] | None = None) -> StepName | None:
    """What a name says: by ``--step-pattern`` where that matches, else by itself.

    Raises:
        InputError: as :func:`by_pattern`.
    """
    found = None if pattern is None else by_pattern(name, pattern)
    return found or step_name(name)


def step_of_place(name: str, pattern: re.Pattern[str] | None = None) -> int | None:
    """The step that the name of a folder or a file without its suffix says, of what lies in it or near it.

    Read as the names of checkpoints are; behind other words too (``mine__checkpoint-80``), since evaluations name their
    folders after a checkpoint's whole path.

    Raises:
        InputError: as :func:`by_pattern`.
    """
    found = named_step(name, pattern)
    if found is not None:
        return found.step
    end = _AT_THE_END.search(name)
    return None if end is None else step_of_name(end[1])


def step_of_name(name: str) -> int | None:
    """The number of the step or epoch that a name says by itself; None: it says none."""
    found = step_name(name)
    return None if found is None else found.step


def compile_pattern(pattern: str | None, where: str = "--step-pattern") -> re.Pattern[str] | None:
    """The regular expression of ``--step-pattern``, or of ``where`` else it was given.

    Raises:
        InputError: it is none, or has no group for the number.
    """
    if pattern is None:
        return None
    try:
        made = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{where} {pattern}: not a regular expression ({error})") from None
    if made.groups == 0:
        raise InputError(f"{where} {pattern}: has no group; put the number into brackets, as in 'run-(\\d+)-x'")
    return made


def by_pattern(name: str, pattern: re.Pattern[str]) -> StepName | None:
    """What a name says by ``--step-pattern``: its group ``step`` or ``epoch``, else its first.

    Raises:
        InputError: the group matches something that is no whole number.
    """
    match = pattern.search(name)
    if match is None:
        return None
    unit: Unit = "epoch" if "epoch" in pattern.groupindex else "step"
    group: int | str = unit if unit in pattern.groupindex else 1
    if match[group] is None or re.fullmatch(_DIGITS, match[group]) is None:
        raise InputError(
            f"--step-pattern {pattern.pattern}: its group matches {match[group]!r} in {name}; expected a whole number"
        )
    stem = f"{name[: match.start(group)]}N"  # what follows may be a loss or a date
    return StepName(int(match[group]), unit, stem, True, "--step-pattern", asked=True)


def step_series(kinds: Mapping[str, object]) -> dict[str, StepName]:
    """Which of several names differ in one number alone, and that number as the step of each.

    Numbers with a unit or a decimal point (``7B``, ``0.6B``, ``1e-5``), dates, and numbers after a word that is none
    of a step (``seed``, ``v``) tell no steps apart. Where several numbers would do, the last one counts.

    Args:
        kinds: names, each with what must be equal among steps of one run, such as the sizes of the model.
    """
    candidates: dict[str, list[StepName]] = {name: _candidates(name) for name in kinds}
    members: dict[str, list[str]] = defaultdict(list)
    for name, readings in candidates.items():
        for reading in readings:
            members[reading.stem].append(name)
    series = {
        stem for stem, names in members.items() if len(names) > 1 and all(kinds[n] == kinds[names[0]] for n in names)
    }
    found: dict[str, StepName] = {}
    for name, readings in candidates.items():
        last = next((one for one in reversed(readings) if one.stem in series), None)
        if last is not None:
            found[name] = last
    sizes: dict[str, int] = defaultdict(int)
    for reading in found.values():
        sizes[reading.stem] += 1
    return {name: reading for name, reading in found.items() if sizes[reading.stem] > 1}


def _candidates(name: str) -> list[StepName]:
    dates = [match.span() for match in _DATE.finditer(name)]
    readings = []
    for match in _NUMBER.finditer(name):
        inside = any(start <= match.start() and match.end() <= end for start, end in dates)
        if inside or len(match[0]) > 18 or _NO_STEP.search(name[: match.start()]) is not None:
            continue
        unit: Unit = "epoch" if re.search(r"ep(ochs?)?[-_=. ]?$", name[: match.start()], re.IGNORECASE) else "step"
        stem = f"{name[: match.start()]}N{name[match.end() :]}"
        source = f"{unit}, the number that tells it from its neighbours"
        readings.append(StepName(int(match[0]), unit, stem, False, source))
    return readings

"""Tokenizers, and the vocabulary that a student and a teacher share."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from opd_probe.errors import MissingError, VocabularyError
from opd_probe.models.checkpoints import tokenizer_home
from opd_probe.models.formats import gguf
from opd_probe.models.guards import one_line, quiet
from opd_probe.texts import read_json

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")


_LARGEST_ID = 2**26
"""Beyond it a table of strings by id would fill the memory; vocabularies have some 2**18 tokens."""


@dataclass(frozen=True, slots=True)
class SharedVocabulary:
    """The ids that both models mean the same by.

    Attributes:
        ids: int64, ascending.
        student_width, teacher_width: of the output layers; None where a teacher does not tell.
        assumed: True when there were no two tokenizers to compare: then every id below the smaller width.
        tokenizer_sha256: digests of student's and teacher's tokenizer, None where there is none.
    """

    ids: NDArray[np.int64]
    student_width: int
    teacher_width: int | None
    assumed: bool
    tokenizer_sha256: tuple[str | None, str | None] = (None, None)

    @property
    def size(self) -> int:
        """The number of shared ids."""
        return len(self.ids)

    @property
    def is_prefix(self) -> bool:
        """Whether the shared ids are 0 … size − 1."""
        return self.size == 0 or int(self.ids[-1]) == self.size - 1


class _HasVocabulary(Protocol):
    """What is compared of a model."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """None where there is none."""
        ...

    @property
    def width(self) -> int | None:
        """The width of the output layer; None for a served model, which does not tell."""
        ...


def shared_vocabulary(
    student: _HasVocabulary, teacher: _HasVocabulary, *, allow_special_mismatch: bool = False
) -> SharedVocabulary:
    """The ids that both tokenizers map to the same string, below both widths.

    Ids that only one tokenizer has, and rows of an output layer that no token has, are excluded. Without two
    tokenizers the ids below the smaller width are taken, recorded as assumed. A served teacher of an unknown tokenizer
    is assumed to have the student's.

    Args:
        allow_special_mismatch: exclude, instead of refusing, an id with two strings that are both special.

    Raises:
        VocabularyError: one id stands for two strings; names the first. Or nothing is shared.
    """
    assert student.width is not None
    narrow = student.width if teacher.width is None else min(student.width, teacher.width)
    widths = student.width, teacher.width
    first, second = student.tokenizer, teacher.tokenizer
    if teacher.width is None and first is not None and second is None:
        ids = np.array(sorted(set(first.get_vocab().values())), dtype=np.int64)
        return SharedVocabulary(
            ids[ids < narrow], *widths, assumed=True, tokenizer_sha256=(tokenizer_digest(first), None)
        )
    if first is None or second is None:
        hashes = tuple(None if tokenizer is None else tokenizer_digest(tokenizer) for tokenizer in (first, second))
        return SharedVocabulary(np.arange(narrow), *widths, assumed=True, tokenizer_sha256=(hashes[0], hashes[1]))
    known = _agreed(first, second)
    whole = _compared_ids(student, teacher, first, second, allow_special_mismatch) if known is None else known
    ids = whole[whole < narrow].astype(np.int64)
    if len(ids) == 0:
        raise VocabularyError(f"tokenizers of {student.name} and {teacher.name} share no token id")
    hashes = tokenizer_digest(first), tokenizer_digest(second)
    return SharedVocabulary(ids, *widths, assumed=False, tokenizer_sha256=hashes)


def _compared_ids(
    student: _HasVocabulary,
    teacher: _HasVocabulary,
    first: PreTrainedTokenizerBase,
    second: PreTrainedTokenizerBase,
    allow_special_mismatch: bool,
) -> NDArray[np.int64]:
    """The ids that both tokenizers map to the same string, ascending.

    Raises:
        VocabularyError: see :func:`shared_vocabulary`.
    """
    left, right = _strings(first), _strings(second)
    known, equal = _compared(left, right)
    differing = np.flatnonzero(known & ~equal)
    special = special_ids(first) & special_ids(second) if allow_special_mismatch else set()
    for token in differing.tolist():
        if token not in special:
            raise VocabularyError(
                f"tokenizers of {student.name} and {teacher.name} differ: id {token} is {left[token]!r} in the "
                f"first and {right[token]!r} in the second ({len(differing)} ids differ); a comparison of tokens "
                "needs one vocabulary"
            )
    ids = np.flatnonzero(known & equal)
    if len(differing) == 0:
        _known(first).agreed[second] = _state(second), ids
    return ids


@dataclass
class _Known:
    """What was found out of a tokenizer object, for as long as it is what it was.

    Attributes:
        state: what it was, see :func:`_state`.
        digest: of its strings, None before it is asked for.
        agreed: by other tokenizers, with their states, the ids that both mean the same by, where no id differs.
    """

    state: _State
    digest: str | None = None
    agreed: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[_State, NDArray[np.int64]]] = field(
        default_factory=WeakKeyDictionary
    )


_State = tuple[Any, ...]

_KNOWN: WeakKeyDictionary[PreTrainedTokenizerBase, _Known] = WeakKeyDictionary()

_SAMPLES = 64
"""Ids, spread over a vocabulary, whose strings tell it from another one."""


def _state(tokenizer: PreTrainedTokenizerBase) -> _State:
    """What tells whether a tokenizer object has other strings than before, in a fraction of the time of listing them:
    how many there are, the added ones, and some of the others. Of one that does not tell them, never the same."""
    try:
        own = tokenizer.vocab_size
        some = sorted({number * max(0, own - 1) // (_SAMPLES - 1) for number in range(_SAMPLES)}) if own else []
        added = tuple(sorted((token, entry.content) for token, entry in tokenizer.added_tokens_decoder.items()))
        backend = id(getattr(tokenizer, "_tokenizer", None))
        return backend, len(tokenizer), own, added, tuple(tokenizer.convert_ids_to_tokens(some))
    except Exception:  # tokenizers that bring their own code raise what they like, as of an id that no token has
        return (object(),)


def _known(tokenizer: PreTrainedTokenizerBase) -> _Known:
    state = _state(tokenizer)
    known = _KNOWN.get(tokenizer)
    if known is None or known.state != state:
        known = _KNOWN[tokenizer] = _Known(state)
    return known


def _agreed(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> NDArray[np.int64] | None:
    """The ids that two tokenizers were found to mean the same by, None where that is not known of them as they are."""
    found = _known(first).agreed.get(second)
    return found[1] if found is not None and found[0] == _state(second) else None


def differing_ids(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> list[tuple[int, str, str]]:
    """Every id that stands for two different strings, ascending, with both of them."""
    left, right = _strings(first), _strings(second)
    known, equal = _compared(left, right)
    return [(token, left[token], right[token]) for token in np.flatnonzero(known & ~equal).tolist()]


def _compared(left: NDArray[np.object_], right: NDArray[np.object_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which ids both have a string for, and which of all ids have the same, up to the shorter of the two."""
    known = np.array([None not in pair for pair in zip(left, right, strict=False)], dtype=bool)
    return known, np.equal(left[: len(known)], right[: len(known)]).astype(bool)


def _strings(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.object_]:
    """Token strings by id, added tokens included; None where no token has the id."""
    vocabulary = tokenizer.get_vocab()
    if (largest := max(vocabulary.values(), default=0)) > _LARGEST_ID:
        raise VocabularyError(
            f"tokenizer {tokenizer.name_or_path}: has a token of id {largest}; expected ids up to {_LARGEST_ID}: its "
            "files are damaged"
        )
    strings = np.full(max(vocabulary.values(), default=-1) + 1, None, dtype=object)
    strings[list(vocabulary.values())] = list(vocabulary)
    return strings


def _digest(strings: NDArray[np.object_]) -> str:
    return hashlib.sha256(json.dumps(strings.tolist()).encode()).hexdigest()


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids that a tokenizer calls special, added tokens included."""
    added = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return added | set(tokenizer.all_special_ids)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over the token strings in the order of their ids, added tokens included."""
    known = _known(tokenizer)
    if known.digest is None:
        known.digest = _digest(_strings(tokenizer))
    return known.digest


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """sha256 of the chat template, None when there is none."""
    template = getattr(tokenizer, "chat_template", None)
    return None if template is None else text_digest(template)


def text_digest(template: Any) -> str:
    """sha256 of a chat template, or of several by name."""
    return hashlib.sha256(json.dumps(template).encode()).hexdigest()


def chat_template_of(tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    """The chat template that a tokenizer uses, the default one of several; None where there is none."""
    template = getattr(tokenizer, "chat_template", None)
    return template.get("default") if isinstance(template, dict) else template


def with_template(tokenizer: Any, template: str | None) -> Any:
    """The tokenizer with another chat template; the same where there is none of either."""
    if template is None or tokenizer is None:
        return tokenizer
    dressed = copy.copy(tokenizer)
    dressed.chat_template = template
    return dressed


def load_tokenizer(place: Any, *, required: bool, trust_remote_code: bool = False) -> PreTrainedTokenizerBase | None:
    """The tokenizer at a path (of a checkpoint in any format) or hub id; a tokenizer is returned as it is.

    Args:
        required: whether its absence is an error, or None.

    Raises:
        MissingError, InputError: it is required and not there, or its files cannot be read.
    """
    if isinstance(place, PreTrainedTokenizerBase):
        return place
    path = Path(str(place))
    if gguf.recognises(path):
        if not required and gguf.TOKENS not in gguf.metadata(path):
            return None
        with one_line(f"tokenizer {place}"), quiet():
            packed: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                str(path.parent), gguf_file=path.name, local_files_only=True
            )
        return packed
    local = path.is_dir()
    if local:
        path = tokenizer_home(path)
    if local and not any((path / name).is_file() for name in _TOKENIZER_FILES):
        if required:
            raise MissingError(f"tokenizer {path}: the directory has no tokenizer files")
        return None
    loader: Any = PreTrainedTokenizerFast if _says_it_all(path) else AutoTokenizer
    with one_line(f"tokenizer {place}"), quiet():
        tokenizer: PreTrainedTokenizerBase = loader.from_pretrained(
            str(path) if local else str(place), local_files_only=local, trust_remote_code=trust_remote_code
        )
    return tokenizer


def _says_it_all(directory: Path) -> bool:
    """Whether tokenizer.json is the whole of a tokenizer.

    The automatic class goes by the model's type for some families (Qwen2 among them) and then splits words by that
    family's rule, whatever tokenizer.json says; a tokenizer of another kind would turn into unknown tokens silently.
    """
    config = directory / "tokenizer_config.json"
    if not config.is_file() or not (directory / "tokenizer.json").is_file():
        return False
    try:
        named = read_json(config).get("tokenizer_class")
    except (ValueError, AttributeError):
        return False  # the loader says what is wrong with the file
    return named in ("TokenizersBackend", "PreTrainedTokenizerFast")

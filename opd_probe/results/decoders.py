"""The decoder that fits a trace: the tokenizer that was asked for, or the one beside its models."""

from __future__ import annotations

from opd_probe.errors import warn
from opd_probe.metrics.context import special_ids, with_special_ids
from opd_probe.models.decoding import Decoder, find_decoder
from opd_probe.trace import Trace


def decoder_of(trace: Trace, given: str | None, missing: list[str], known: Decoder | None = None) -> Decoder:
    """A decoder that fits the trace; says what is missing, and warns when it is not the trace's own tokenizer.

    A trace that does not know its special tokens is told.

    Args:
        given: path or hub id; None: what lies beside the student or the teacher of the trace.
        known: one that is taken without a look at the disk where its tokens are the trace's.

    Raises:
        OpdProbeError: ``given`` cannot be loaded.
    """
    student, teacher = (trace.provenance.get(side, {}) for side in ("student", "teacher"))
    vocabulary = trace.provenance.get("vocabulary", {})
    digests = {vocabulary.get(f"{side}_tokenizer_sha256") for side in ("student", "teacher")} - {None}
    decoder = known
    if known is None or known.name is None or known.digest not in digests:
        decoder = find_decoder(given, [student.get("path"), student.get("base"), teacher.get("path")])
    assert decoder is not None
    if decoder.name is None:
        where = student.get("path") or "a model in memory"
        missing.append(
            f"Text: no tokenizer is where the trace's student was ({where}), so ids are shown; give --tokenizer PATH."
        )
        return decoder
    if digests and decoder.digest not in digests:
        warn(
            f"tokenizer {decoder.name}: is not the one that the trace was made with (their tokens differ); decoded "
            "text may be wrong, give the right one with --tokenizer"
        )
    if special_ids(trace) is None:
        with_special_ids(trace, decoder.special_ids)
    return decoder

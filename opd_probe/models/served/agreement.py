"""Whether a server samples from the weights that it scores with: its first answers, scored by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from opd_probe.errors import ServerError, warn
from opd_probe.models.served.answers import NO_LOGPROBS, misnormalised
from opd_probe.models.served.client import Client, Refused
from opd_probe.models.served.dialects import Draw, Drawn
from opd_probe.models.served.model import ServedModel

FIRST = 8
"""Prompts of which one answer is scored."""

LONGEST = 64
"""Tokens of it that are scored."""

DRAWN = 16
"""Tokens of an answer that is drawn for this alone: at temperature 1 and of all ids, since servers differ in what they
report of others."""

REFUSED = 0.25
"""Mean |Δ| in nats of an answer from which its tokens are of no one model: rounding explains a tenth of it."""

WARNED = 0.05
"""Likewise over all answers together, from which it is said."""


def draw_once(served: ServedModel, client: Client, prompt: Sequence[int], how: Draw) -> Drawn:
    """One response.

    Raises:
        ServerError: no usable answer.
    """
    body = served.dialect.draw_request(served.entry, prompt, how)
    size = f"a prompt of {len(prompt):,} tokens, up to {how.max_new_tokens:,} new ones"
    answer = client.post(served.dialect.path, body, size=size, broken_off=served.dialect.broken_off)
    return served.read(lambda: served.dialect.drawn(answer, prompt))


class FirstAnswers:
    """Scores the first answers to the first prompts, as they come.

    Args:
        served: what sampled them.
        width: how many ids its vocabulary has at least.
    """

    def __init__(self, served: ServedModel, width: int) -> None:
        self._served, self._width = served, width
        self._seen: set[tuple[int, ...]] = set()
        self._apart: list[float] = []

    def check(self, name: str, prompt: Sequence[int], how: Draw, drawn: Drawn) -> None:
        """Compare the log-probabilities of an answer with the scores of its tokens, where it is one of the first.

        Args:
            name: of the rollout.

        Raises:
            ServerError: they are far apart, or no log-probabilities.
        """
        if tuple(prompt) in self._seen or len(self._seen) >= FIRST:
            return
        self._seen.add(tuple(prompt))
        # One of its own: that of the answers is closed as soon as one of them fails.
        with Client(self._served.endpoint, self._served.patience) as client:
            if how.temperature != 1.0 or how.banned or how.allowed is not None:
                new = min(how.max_new_tokens, DRAWN)
                how = dataclasses.replace(how, max_new_tokens=new, temperature=1.0, allowed=None, banned=())
                drawn = draw_once(self._served, client, prompt, how)
            apart = self._differences(client, name, prompt, drawn)
        self._apart += apart
        if apart and np.mean(apart) > REFUSED:
            raise ServerError(
                f"sampler {self._served.name}, rollout {name!r}: its log-probabilities of {len(apart)} sampled tokens "
                f"and its own scores of them differ by {np.mean(apart):.2g} nats (mean |Δ|), so that the tokens are of "
                "no one model; if its weights were replaced, reset its prefix cache (vLLM: POST "
                "/reset_prefix_cache) or start it again"
            )

    def remark(self) -> None:
        """Warn where the answers together are apart by more than rounding."""
        if self._apart and np.mean(self._apart) > WARNED:
            warn(
                f"sampler {self._served.name}: its log-probabilities of sampled tokens and its own scores of them "
                f"differ by {np.mean(self._apart):.2g} nats (mean |Δ| over {len(self._apart)} tokens); reset its "
                "prefix cache if its weights were replaced, or do not read differences of this size as a signal"
            )

    def _differences(self, client: Client, name: str, prompt: Sequence[int], drawn: Drawn) -> list[float]:
        """|Δ| of the tokens of which both are known; none of a server that does not score."""
        context = self._served.max_positions
        room = LONGEST if context is None else min(LONGEST, context - len(prompt))
        ids = [*prompt, *drawn.ids[:room]]
        places = list(range(len(prompt), len(ids)))
        if not places:
            return []
        try:
            told = self._served.told(client, ids, places, 1)
        except Refused:
            return []
        wrong = misnormalised(told, self._width)
        if wrong is not None:
            raise ServerError(
                f"sampler {self._served.name}, rollout {name!r}, position {wrong[0]}: {wrong[1]}; {NO_LOGPROBS}"
            )
        change = np.abs(told.logprob - np.asarray(drawn.logprobs[: len(places)], dtype=np.float32))
        return [float(value) for value in change[np.isfinite(change)]]

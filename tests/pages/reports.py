"""Real reports for tests of their page: traces of a run, its tokenizer and its rollouts, without any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opd_probe.cli.main import main
from opd_probe.rollouts.files import write_rollouts
from opd_probe.trace import Trace, read_trace
from opd_probe.types import Rollout
from tests.samples import grouped_trace, random_pair
from tests.tiny import tiny_tokenizer

VOCABULARY, K, DEPTH = 48, 4, 8
STEPS = (0, 20, 100)
PROBES = (
    "</script><script>window.hacked=1</script>",
    "<img/src=x/onerror=window.hacked=1>",
    "<svg/onload=window.hacked=1>",
    '"onmouseover="window.hacked=1"',
    "'onfocus='window.hacked=1'autofocus='",
    "javascript:window.hacked=1",
    "data:text/html,<script>window.hacked=1</script>",
    "<!--",
    "-->",
    "]]>",
    "{{7*7}}",
    "{%raw%}",
    "${window.hacked=1}",
    "`window.hacked=1`",
    "\u202egnorw\u202c",
    "\x1b[31m\x07\x08",
    "a\u2028b",
    "&lt;b&gt;",
    "</style><style>body{display:none}</style>",
    "Z" * 3000,
    "constructor",
    "__proto__",
)
"""Words that would do something if they were not kept as text."""

TEACHER = "<img src=x onerror=window.hacked=1>big"
"""A name that somebody gave."""

WORDS = [*PROBES, "thus", "12", "7", "+", "**", "answer"]
WORDS += [f"word{number}" for number in range(VOCABULARY - 3 - len(WORDS))]


@dataclass(frozen=True)
class Made:
    """A report and what it was made of."""

    page: Path
    traces: list[Trace]

    @property
    def html(self) -> str:
        return self.page.read_text(encoding="utf-8")


def make_traces(
    root: Path, *, prompts: int = 6, length: int = 9, fixed: bool = False, steps: Sequence[int] = STEPS
) -> Path:
    """Checkpoints of one run with two responses to each prompt, and what they sampled; as a command leaves them.

    The first token of each response is masked. With ``fixed`` all checkpoints have the same responses.
    """
    tokenizer = tiny_tokenizer(words=WORDS)
    tokenizer.save_pretrained(root / "tokenizer")
    generator = np.random.default_rng(0)
    lengths = generator.integers(2, length, (len(steps), prompts, 2))
    drawn = generator.integers(1, VOCABULARY, (len(steps), prompts, 2, length + 1))
    for at, step in enumerate(steps):
        of = 0 if fixed else at
        rows, rollouts = [], []
        for prompt in range(prompts):
            for number in range(2):
                n = int(lengths[of, prompt, number])
                name = f"p{prompt}/{number}"
                ids = drawn[of, prompt, number, : n + 1].tolist()
                cut = bool((prompt + number) % 3 == 0)
                score = None if prompt == 1 else float((prompt + at + number) % 2)
                rows.append({
                    "prompt_id": f"p{prompt}", "rollout_id": name, "n_states": n, "response_length": n + 1,
                    "prompt_length": 3, "score": score, "finish_reason": "length" if cut else "stop",
                })  # fmt: skip
                rollouts.append(Rollout(name, [3, 4, 5 + prompt], ids, f"p{prompt}", [0, *[1] * n]))
        tokens = np.concatenate([rollout.response_ids[1:] for rollout in rollouts]).astype(np.int64)
        student, teacher, _ = random_pair(len(tokens), VOCABULARY, seed=7 if fixed else at)
        moved = student + np.random.default_rng(at).normal(0, 0.8 * at, student.shape).astype(np.float32)
        positions = [position for row in rows for position in range(1, row["n_states"] + 1)]
        trace = grouped_trace(
            rows, vocabulary=VOCABULARY, k=DEPTH, logits=(moved, teacher, tokens), positions=positions
        )
        trace.provenance["student"] = {"path": str(root / "tokenizer")}
        trace.provenance["labels"] = {
            "run": "mine", "teacher": TEACHER, "step": step, "states": "fixed" if fixed else "own",
        }  # fmt: skip
        file = f"step-{step}.parquet"
        for folder in ("traces/mine/big", "rollouts/mine"):
            (root / "out" / folder).mkdir(parents=True, exist_ok=True)
        trace.save(root / "out" / "traces" / "mine" / "big" / file)
        write_rollouts(root / "out" / "rollouts" / "mine" / file, rollouts)
    return root / "out"


def make_report(traces: Path, to: Path, *words: str) -> Made:
    """The report on stored traces."""
    assert main(["report", "--traces", str(traces), "--k", str(K), "--out", str(to), *words]) == 0
    stored = sorted((traces / "traces").rglob("*.parquet"), key=lambda path: int(path.stem.split("-")[1]))
    return Made(to / "report.html", [read_trace(path) for path in stored])


def unpacked(text: str, dtype: str) -> np.ndarray[Any, Any]:
    """A packed array of the page, read as its script does."""
    import zlib
    from base64 import b64decode

    return np.frombuffer(zlib.decompress(b64decode(text)), dtype=dtype)

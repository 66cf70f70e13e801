"""``make architectures``: every type of the installed transformers, and docs/models.md from what was found.

Goes on where it stopped: findings are kept, a line each, in the file that is given.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

from tests.architectures.build import CAUSAL, IMAGE_TEXT, TWO_SIDED
from tests.architectures.trial import SEEDS, Finding, try_type

DOCS = Path(__file__).parents[2] / "docs" / "models.md"

INTRODUCTION = """# Models

Whatever is measured is held against one thing: the model's own forward of each sequence alone. Before a model
object is first used it is tried on two short sequences, and the cheapest way that agrees is taken:

- **its output layer**: the decoder alone and the output layer of ours (its scale and soft cap measured, not
  looked up by name), or the whole model up to where it calls that layer, or else the model's own logits;
- **batches**: padded on the right, or of one length, or one sequence at a time;
- **shared prompts and long sequences**: once or piece by piece through a cache that the model itself makes, or
  whole;
- **sampling**: behind a cache with prompts padded on the left, or of one length, or by reading whole prefixes
  again.

A model is refused in one line where a later token changes what it says of those before it. Where the attention
keeps the best few of what was read and has equal scores among them, what the model says of a prefix depends on
how much follows: such a model is replayed in whole rollouts, each token is sampled from its whole prefix, and a
warning says that the two may differ. How much two paths may differ is
what rounding does to that model, measured by moving its embeddings by their last bit. A model object is tried
once, a path when a job first needs it. Windows, chunks and pieces of thousands of tokens are longer than what a
model is tried on: those are proved by the table below, on models whose configuration makes them short, and not
at run time.

**Length factors.** In models with longrope or dynamic scaling the length of a call decides the rotary factors
of all its tokens, so that one prefix has several distributions. `--length-factors` says whose length decides:
`prefix` (the default: the one that a token is predicted from, which is what `generate` samples from), `whole`
(the rollout, as in a trainer's forward), or `server` (the longest that the model takes, as vLLM does it; for a
rollout's own sampling `whole` is `prefix`). A trace's provenance names the rule and counts the states of
rollouts that straddle the boundary, and a stored trace is used again under the same rule alone. With dynamic
scaling every prefix beyond the boundary is read by itself.

**Multimodal checkpoints** are used as models of text. Ids that stand for pieces of images, videos or sounds are
never sampled, and one in a prompt or a response is one line.

"""
"""What the page says before its tables."""

ORDER = ("wrong", "traceback", "not built", "refused", "exact")
"""The outcome of a type is the first of these that one of its seeds had."""

Job = tuple[str, str, int]
"""(group, type, seed)"""


def jobs() -> Iterator[Job]:
    """All that is tried."""
    for group, kinds in (("causal", CAUSAL), ("two-sided", tuple(TWO_SIDED)), ("image-text", IMAGE_TEXT)):
        for kind in kinds:
            for seed in SEEDS:
                yield group, kind, seed
    for kind in CAUSAL:
        yield "bfloat16", kind, SEEDS[0]


def tried(group: str, kind: str, seed: int) -> Finding:
    """What a type of a group turns out to be."""
    changes = TWO_SIDED[kind] if group == "two-sided" else {}
    return try_type(kind, seed, image_text=group == "image-text", coarse=group == "bfloat16", **changes)


def known(place: Path) -> dict[Job, Finding]:
    """The findings that are there already."""
    if not place.is_file():
        return {}
    rows = [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()]
    return {(row["group"], row["kind"], row["seed"]): Finding(**row["finding"]) for row in rows}


def outcomes(findings: dict[Job, Finding], group: str) -> dict[str, Finding]:
    """For each type of a group the worst of its findings."""
    worst: dict[str, Finding] = {}
    for (own, kind, _), found in findings.items():
        if own != group:
            continue
        before = worst.get(kind)
        if before is None or ORDER.index(found.outcome) < ORDER.index(before.outcome):
            worst[kind] = found
    return worst


def failures(findings: dict[Job, Finding]) -> list[str]:
    """What must not be, a line each: wrong numbers, tracebacks, a two-sided model that is taken, too few exact ones."""
    said = [
        f"{group} {kind}, seed {seed}: {found.outcome} {found.why} {found.errors}"
        for (group, kind, seed), found in findings.items()
        if found.outcome in ("wrong", "traceback") or (group == "two-sided" and found.outcome == "exact")
    ]
    causal = outcomes(findings, "causal")
    said += [
        f"bfloat16 {kind}: {found.outcome} {found.why}, where float32 is exact"
        for kind, found in outcomes(findings, "bfloat16").items()
        # What the model's own forward cannot do in bfloat16 is no rounding of ours.
        if found.outcome != "exact"
        and causal.get(kind, found).outcome == "exact"
        and "cannot be replayed" not in found.why
    ]
    counts = Counter(found.outcome for found in causal.values())
    built = sum(counts.values()) - counts["not built"]
    if counts["exact"] < 0.95 * built:
        said.append(f"{counts['exact']} of {built} causal types are exact; expected at least 95 %")
    return said


def page(findings: dict[Job, Finding]) -> str:
    """docs/models.md"""
    lines = [
        INTRODUCTION,
        "Written by `make architectures`: every type that transformers "
        f"{transformers.__version__} has, as a small random model with its knobs off their defaults and its windows, "
        "chunks and index sizes below the length of the test. Each is held against its own forward of each sequence "
        "alone, on two seeds: batches of unequal lengths, shared prompts, pieces through a cache, and sampling from "
        "prompts of equal and of unequal lengths. *Exact* is within 1e-4 nats everywhere; *refused* is one line that "
        "says why.",
        "",
    ]
    titles = {"causal": "Causal types", "image-text": "Image-text types, as models of text"}
    titles["bfloat16"] = "Causal types in bfloat16: the median token within .2 nats, on one seed"
    titles["two-sided"] = "Causal types whose configuration makes them see to the right: all must be refused"
    for group, title in titles.items():
        found = outcomes(findings, group)
        counts = Counter(one.outcome for one in found.values())
        said = ", ".join(f"{counts[outcome]} {outcome}" for outcome in reversed(ORDER) if counts[outcome])
        lines += [
            f"## {title}",
            "",
            f"{len(found)} types: {said}.",
            "",
            "| type | outcome | how, or why not |",
            "|---|---|---|",
        ]
        for kind in sorted(found):
            one = found[kind]
            note = (one.why or one.ways).replace("|", "/")
            seeds = [seed for own, other, seed in findings if (own, other) == (group, kind)]
            if one.outcome != "not built" and group != "bfloat16" and len(seeds) < len(SEEDS):
                note = "; ".join(filter(None, [note, f"tried on seed {seeds[0]} alone"]))
            lines.append(f"| {kind} | {one.outcome} | {note} |")
        lines.append("")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> int:
    """Try what has not been tried, and say what must not be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--findings", type=Path, default=Path("build/architectures.jsonl"))
    parser.add_argument("--only", nargs="*", default=None, help="types to try; all when left out")
    parser.add_argument("--groups", nargs="*", default=["causal", "two-sided", "image-text", "bfloat16"])
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--page", type=Path, default=None, help=f"also write the page, such as {DOCS.name}")
    options = parser.parse_args(given)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity(50)
    torch.set_num_threads(1)
    options.findings.parent.mkdir(parents=True, exist_ok=True)
    findings = known(options.findings)
    for job in jobs():
        left_out = options.only is not None and job[1] not in options.only
        if job in findings or left_out or job[2] not in options.seeds or job[0] not in options.groups:
            continue
        findings[job] = tried(*job)
        line = {"group": job[0], "kind": job[1], "seed": job[2], "finding": asdict(findings[job])}
        with options.findings.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(*job, findings[job].outcome, findings[job].why, flush=True)
    if options.page is not None:
        options.page.write_text(page(findings), encoding="utf-8")
    said = failures(findings)
    print("\n".join(said) or "none is wrong, and none ends in a traceback")
    return 1 if said else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What the rule for the closed share says of the lab's runs, beside what became of their accuracy."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from opd_probe.results.verdict import APART, CLOSED, GAIN, share_closed

CURVES = Path(__file__).parent.parent / "figures" / "data" / "curves.parquet"


def confusion() -> list[tuple[int, str, int, int, int]]:
    """Seed, verdict, and how many runs gained accuracy, did neither, and lost it; each run once."""
    table = pd.read_parquet(CURVES)
    table = table[table["k"] == 16].sort_values("step")
    seen: set[tuple[float, ...]] = set()
    counts: Counter[tuple[int, str, int]] = Counter()
    for (_, seed), run in table.groupby(["run", "seed"]):
        overlap, distance = run["overlap_ratio"].to_numpy(), run["reverse_kl"].to_numpy()
        if (key := (seed, *overlap.round(9))) in seen:
            continue  # a run that serves several experiments
        seen.add(key)
        closed = float(share_closed(overlap, distance))
        verdict = "aligning" if closed >= CLOSED else "drifting" if closed <= APART else "stagnating"
        gain = run["accuracy"].iloc[-1] - run["accuracy"].iloc[0]
        counts[seed, verdict, int(np.sign(gain) * (abs(gain) >= GAIN))] += 1
    rows = sorted({(seed, verdict) for seed, verdict, _ in counts})
    return [(seed, verdict, *(counts[seed, verdict, sign] for sign in (1, 0, -1))) for seed, verdict in rows]

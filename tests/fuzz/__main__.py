"""``make fuzz``: read damaged and hostile input with every reader, and keep what is read or refused wrongly.

Half of the inputs are real files that were damaged, half well-formed files of other values. Each must be read, or
refused with an error of ours in one line, without a hang, without memory running away and without anything left
behind. What was done is kept, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

CHUNK = 250
"""Inputs that a process is given at a time."""

LIMIT = 10.0
"""Seconds that one input may take."""

ROOM = 6 << 30
"""Bytes of addresses that a process may take beyond those that it begins with."""

KEPT = 3
"""Inputs that are kept of one fault."""


@dataclass
class Tally:
    """What became of a reader's inputs."""

    done: set[int] = field(default_factory=set)
    read: int = 0
    refused: int = 0
    faults: int = 0
    seconds: float = 0.0

    @property
    def inputs(self) -> int:
        """How many there were."""
        return self.read + self.refused + self.faults


def main() -> int:
    """The command."""
    arguments = _parsed()
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.replay:
        return _replayed(Path(arguments.replay))
    found = Campaign(folder, arguments).run()
    if arguments.page:
        from tests.fuzz.page import write_page

        write_page(Path(arguments.page), folder)
    return found


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="inputs for each reader (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (%(default)s)")
    parser.add_argument("--reader", action="append", help="only readers whose name begins so; may be given again")
    parser.add_argument("--jobs", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--minutes", type=float, help="stop after so many; the same command goes on")
    parser.add_argument("--folder", default=".fuzz", help="where faults and what was done are kept (%(default)s)")
    parser.add_argument("--replay", metavar="DIRECTORY", help="read one kept input again and show what it does")
    parser.add_argument("--page", metavar="FILE", help="then write the table of what was done into a page")
    return parser.parse_args()


class Campaign:
    """Readers and processes that work through their inputs."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        from tests.fuzz.readers import readers

        self.folder, self.arguments = folder, arguments
        self.record = folder / f"seed-{arguments.seed}.json"
        self.scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        wanted = arguments.reader or [""]
        jobs = self._jobs()
        self.readers = {one.name: one for one in readers(jobs) if any(one.name.startswith(name) for name in wanted)}
        self.tallies = self._known()
        self.seeds: dict[str, Any] = {}
        self.signatures: dict[str, int] = {}

    def _jobs(self) -> Path:
        """What training jobs of several ranks left, made once."""
        place = self.folder / "jobs"
        if not (place / "peft").is_dir():
            place.mkdir(exist_ok=True)
            subprocess.run(
                [sys.executable, "-W", "ignore", "-m", "tests.training_jobs", str(place)],
                check=True,
                stderr=subprocess.DEVNULL,
            )
        return place

    def _known(self) -> dict[str, Tally]:
        try:
            stored = json.loads(self.record.read_text())
        except OSError:
            stored = {}
        return {name: Tally(**{**one, "done": set(one["done"])}) for name, one in stored.items()}

    def _store(self) -> None:
        content = {name: {**vars(tally), "done": sorted(tally.done)} for name, tally in sorted(self.tallies.items())}
        temporary = self.record.with_suffix(".tmp")
        temporary.write_text(json.dumps(content))
        temporary.replace(self.record)

    def run(self) -> int:
        """Work through what is left; 1 when a fault was found."""
        warnings.simplefilter("ignore")
        for name, reader in self.readers.items():
            place = self.scratch / "seeds" / name.replace(":", "-").replace("/", "-")
            place.mkdir(parents=True)
            self.seeds[name] = reader.seeds(place)
            self.tallies.setdefault(name, Tally())
        chunks = range(-(-self.arguments.count // CHUNK))
        queue = [(name, chunk) for chunk in chunks for name in self.readers if chunk not in self.tallies[name].done]
        before = sum(tally.faults for tally in self.tallies.values())
        started = time.monotonic()
        workers = [Worker(self, number) for number in range(self.arguments.jobs)]
        left, said = list(reversed(queue)), started
        try:
            while left or any(worker.busy for worker in workers):
                if self.arguments.minutes and time.monotonic() - started > 60 * self.arguments.minutes:
                    left.clear()
                for worker in workers:
                    if not worker.busy and left:
                        worker.give(left.pop())
                wait([worker.pipe for worker in workers], timeout=0.25)
                for worker in workers:
                    worker.look()
                if time.monotonic() - said > 10:
                    said = time.monotonic()
                    self._say(len(queue) - len(left), len(queue), said - started)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here")
        finally:
            for worker in workers:
                worker.end()
            self._store()
            subprocess.run(["rm", "-rf", str(self.scratch)], check=False)
        for name in sorted(self.readers):
            tally = self.tallies[name]
            print(
                f"{name:28s} {tally.inputs:8,} inputs, {tally.refused:8,} refused, {tally.faults:5,} faults, {tally.seconds:7.0f} s"  # noqa: E501
            )
        found = sum(tally.faults for tally in self.tallies.values()) - before
        print(
            f"{sum(tally.inputs for tally in self.tallies.values()):,} inputs; {found} faults in this run, kept in {self.folder}"  # noqa: E501
        )
        return 1 if found else 0

    def _say(self, done: int, total: int, seconds: float) -> None:
        faults = sum(tally.faults for tally in self.tallies.values())
        rest = seconds * (total - done) / max(done, 1)
        print(
            f"{done * CHUNK:,} of {total * CHUNK:,} inputs, {faults} faults, about {rest / 60:.0f} min left", flush=True
        )

    def finished(self, name: str, chunk: int, result: dict[str, Any]) -> None:
        """Count what became of a chunk."""
        tally = self.tallies[name]
        tally.done.add(chunk)
        tally.read += result["read"]
        tally.refused += result["refused"]
        tally.seconds += result["seconds"]
        self._store()

    def fault(self, name: str, number: int, found: Any, tree: Any) -> None:
        """Count a fault, and keep the first inputs that show it."""
        self.tallies[name].faults += 1
        known = self.signatures[found.signature] = self.signatures.get(found.signature, 0) + 1
        if known > KEPT:
            return
        place = self.folder / "faults" / f"{name.replace(':', '-').replace('/', '-')}-{self.arguments.seed}-{number}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "input.pickle").write_bytes(pickle.dumps((name, tree)))  # ours alone; an input may be no ordinary file
        (place / "fault.txt").write_text(f"{found.signature}\nreader {name}, seed {self.arguments.seed}, input {number}\n\n{found.text}\n",  # noqa: E501
                                         errors="backslashreplace")  # fmt: skip
        print(f"fault: {name} input {number}: {found.signature}; kept in {place}", flush=True)


class Worker:
    """A process that judges inputs, and the watch over it."""

    def __init__(self, campaign: Campaign, number: int) -> None:
        self.campaign, self.number = campaign, number
        self.task: tuple[str, int] | None = None
        self.start = 0
        self.result: dict[str, Any] = {}
        self.watched: tuple[Any, float, float] | None = None
        self._begin()

    def _begin(self) -> None:
        self.at = multiprocessing.RawArray("d", 2)  # the number of the input, and when it was begun
        self.pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        scratch = self.campaign.scratch / f"worker-{self.number}-{time.monotonic_ns()}"
        self.process = context.Process(target=_work, args=(theirs, self.campaign, self.at, scratch), daemon=True)
        self.process.start()
        theirs.close()

    @property
    def busy(self) -> bool:
        """Whether it has something to do."""
        return self.task is not None

    def give(self, task: tuple[str, int]) -> None:
        """Have it work through a chunk."""
        self.task, self.start = task, task[1] * CHUNK
        self.result = {"read": 0, "refused": 0, "seconds": 0.0}
        self._send()

    def _send(self) -> None:
        assert self.task is not None
        self.at[0], self.at[1] = -1, time.monotonic()
        stop = min((self.task[1] + 1) * CHUNK, self.campaign.arguments.count)
        self.pipe.send((self.task[0], self.start, stop))

    def look(self) -> None:
        """Take what it says; end it when one input takes too long, and go on behind that."""
        try:
            while self.task is not None and self.pipe.poll():
                what, *said = self.pipe.recv()
                if what == "fault":
                    self.campaign.fault(self.task[0], *said)
                else:
                    for key, value in said[0].items():
                        self.result[key] += value
                    if what == "done":
                        self.campaign.finished(*self.task, self.result)
                        self.task = None
        except (EOFError, OSError):
            self._lost("crash")
            return
        if self.task is not None and self.at[0] >= 0 and time.monotonic() - self.at[1] > LIMIT and self._stuck():
            self._lost("hang")

    def _stuck(self) -> bool:
        """Whether its input has taken too much work, or waits for something that does not come."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        work = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        now, where = time.monotonic(), (self.task, self.at[0])
        if self.watched is None or self.watched[0] != where:
            self.watched = (where, now, work)
        _, since, before = self.watched
        return work - before > LIMIT / 2 or (now - since > LIMIT / 2 and work - before < 0.1 and fields[0] == "S")

    def _lost(self, kind: str) -> None:
        from tests.fuzz.cases import Fault, case

        assert self.process.pid is not None
        if self.process.is_alive():
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        if self.task is not None:
            name, number = self.task[0], int(self.at[0])
            if number >= 0:
                reader = self.campaign.readers[name]
                tree = case(reader, self.campaign.seeds[name], self.campaign.arguments.seed, number)
                self.campaign.fault(name, number, Fault(kind, name, f"exit code {self.process.exitcode}"), tree)
                self.start = number + 1
        self._begin()
        if self.task is not None:
            if self.start >= min((self.task[1] + 1) * CHUNK, self.campaign.arguments.count):
                self.campaign.finished(*self.task, self.result)
                self.task = None
            else:
                self._send()

    def end(self) -> None:
        """End its process."""
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()


def _work(pipe: Connection, campaign: Campaign, at: Any, scratch: Path) -> None:
    """What the process does: judge chunks until the pipe ends."""
    from tests.fuzz.cases import SECRET, case, judge, smaller

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prepared(scratch, SECRET)
    known: dict[str, int] = {}
    while True:
        try:
            name, start, stop = pipe.recv()
        except EOFError:
            return
        reader, seeds = campaign.readers[name], campaign.seeds[name]
        began = time.process_time()
        counts = {"read": 0, "refused": 0}
        for number in range(start, stop):
            at[0], at[1] = number, time.monotonic()
            tree = case(reader, seeds, campaign.arguments.seed, number)
            was_read, fault = judge(reader, tree, scratch)
            if fault is None:
                counts["read" if was_read else "refused"] += 1
                continue
            known[fault.signature] = known.get(fault.signature, 0) + 1
            if known[fault.signature] <= KEPT and fault.kind not in ("growth", "temporary"):
                at[1] = time.monotonic() + 120
                tree = smaller(reader, tree, seeds, fault, scratch)
            pipe.send(("fault", number, fault, tree))
            pipe.send(("more", counts))
            counts = {"read": 0, "refused": 0}
        at[0] = -1
        pipe.send(("done", {**counts, "seconds": time.process_time() - began}))


def prepared(scratch: Path, secret: str) -> None:
    """Make this process one in which inputs are judged: its own temporary directory, limits, a key, one thread."""
    import torch

    (scratch / "tmp").mkdir(parents=True)
    os.environ.update(TMPDIR=str(scratch / "tmp"), OPD_PROBE_API_KEY=secret, HF_HUB_OFFLINE="1", no_proxy="*")
    tempfile.tempdir = str(scratch / "tmp")
    os.chdir(scratch)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)  # libraries' words
    torch.set_num_threads(1)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _replayed(place: Path) -> int:
    from tests.fuzz.cases import judge
    from tests.fuzz.readers import reader_named

    file = place / "input.pickle" if place.is_dir() else place
    name, tree = pickle.loads(file.read_bytes())
    for path, content in tree.items():
        print(f"{path}: {len(content) if isinstance(content, bytes) else content}")
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    os.environ["HF_HUB_OFFLINE"] = "1"
    (scratch / "tmp").mkdir()
    tempfile.tempdir = str(scratch / "tmp")
    was_read, fault = judge(reader_named(name), tree, scratch)
    subprocess.run(["rm", "-rf", str(scratch)], check=False)
    print("read" if was_read else "refused" if fault is None else f"{fault.signature}\n{fault.text}")
    return 0 if fault is None else 1


if __name__ == "__main__":
    sys.exit(main())

"""Every reader with real files of each kind that it reads. What a table of the package declares stands here by itself."""  # noqa: E501

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.fuzz.trees import Tree, lay, tree_of


@dataclass(frozen=True)
class Reader:
    """A reader and what it is given.

    Attributes:
        name: the kind, a colon, and the entry of the table that declares it.
        seeds: real files, made below a directory; each a tree.
        read: reads what lies in a directory, as a command would.
        writes: whether reading may change what is there, as the spool of a replay does.
    """

    name: str
    seeds: Callable[[Path], list[Tree]] = field(repr=False)
    read: Callable[[Path], object] = field(repr=False)
    writes: bool = False


def readers(jobs: Path | None = None) -> list[Reader]:
    """All readers.

    Args:
        jobs: what :mod:`tests.training_jobs` left on disk, for checkpoints of several ranks; None: without them.
    """
    return [
        *_rollouts(),
        *_prompts(),
        *_logs(),
        *_manifests(),
        *_checkpoints(jobs),
        *_tokenizers(),
        *_stored(),
        *_served(),
    ]


def reader_named(name: str, jobs: Path | None = None) -> Reader:
    """The reader of a name."""
    return next(one for one in readers(jobs) if one.name == name)


# Rollouts and prompts


def _rollouts() -> Iterator[Reader]:
    from tests.rollouts.left_behind import WRITERS

    for name, writer in WRITERS.items():
        yield Reader(f"rollouts:{name}", lambda root, writer=writer: _written(root, writer), _read_rollouts)


def _written(root: Path, writer: Callable[[Path], Path]) -> list[Tree]:
    place = writer(root)
    whole = tree_of(root)
    below = {name: content for name, content in whole.items() if (root / name).is_relative_to(place)}
    single = list(below)[-1]
    rest = {name: content for name, content in whole.items() if name not in below}
    return [whole, {single: below[single], **rest}]


def _read_rollouts(root: Path) -> None:
    from opd_probe.rollouts.encoding import encode_rollouts
    from opd_probe.rollouts.files import prompt_key, rollouts_digest
    from opd_probe.rollouts.padding import special_ids_of, without_padding
    from opd_probe.rollouts.reading import read_rollout_set, remarks

    files = [path for path in root.rglob("*") if path.is_file()]
    found = read_rollout_set([files[0] if len(files) == 1 else _single(root)])
    remarks(found)
    rollouts_digest(found.rollouts)
    for rollout in found.rollouts:
        prompt_key(rollout)
    if _weight(root) % 8:  # what follows takes ten times as long
        return
    if any(rollout.token_source == "retokenized" for rollout in found.rollouts):
        encode_rollouts(found.rollouts, tokenizer())
    else:
        without_padding(found.rollouts, special_ids_of(tokenizer()), "rollouts")


def _single(root: Path) -> Path:
    """The directory itself, or the only one in it."""
    inside = list(root.iterdir())
    return inside[0] if len(inside) == 1 else root


@cache
def tokenizer() -> Any:
    """A small tokenizer with a chat template."""
    from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer

    return tiny_tokenizer(chat_template=CHAT_TEMPLATE)


PROMPT_ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "3 4", "answer": "7"},
    {
        "prompt": [{"role": "user", "content": "3 4"}],
        "reward_model": {"ground_truth": ["7", "8"]},
        "extra_info": {"i": 1},
    },
    {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "5"}]}]},
    {
        "messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}],
        "tools": [{"type": "function"}],
    },
    {"prompt_ids": [3, 4, 5], "chat_template_kwargs": {"enable_thinking": True}},
]


def _prompts() -> Iterator[Reader]:
    def seeds(root: Path) -> list[Tree]:
        from datasets import Dataset

        lines = "".join(json.dumps(row) + "\n" for row in PROMPT_ROWS).encode()
        chats = [{"prompt": row["prompt"], "answer": "7"} for row in PROMPT_ROWS if isinstance(row.get("prompt"), list)]
        Dataset.from_list(chats * 2).save_to_disk(str(root / "set"))
        verl = Path(__file__).parent.parent / "rollouts" / "verl_prompts.parquet"
        return [
            {"p.jsonl": lines},
            {"p.json": json.dumps(PROMPT_ROWS).encode()},
            {"p.parquet": verl.read_bytes()},
            tree_of(root / "set"),
            {"p.arrow": next((root / "set").glob("*.arrow")).read_bytes()},
        ]

    yield Reader("prompts:files", seeds, _read_prompts)


def _read_prompts(root: Path) -> None:
    from opd_probe.jobs.sampling import prompts_digest
    from opd_probe.rollouts.prompts import encode_prompts, read_prompts

    files = list(root.iterdir())
    prompts = read_prompts(files[0] if len(files) == 1 else root)
    prompts_digest(prompts)
    encode_prompts(prompts, tokenizer())


# Training logs and manifests


def _logs() -> Iterator[Reader]:
    from tests.fuzz.logs import LOGS

    for name, tree in LOGS.items():
        yield Reader(f"logs:{name}", lambda root, tree=tree: [tree(root)], _read_log)


def _read_log(root: Path) -> None:
    from opd_probe.runs.log_files import read_log

    files = list(root.iterdir())
    place = files[0] if len(files) == 1 else root
    several = place.is_dir() or place.suffix == ".db"
    if several and _weight(root) % 2:  # a log of several runs, of which one is named
        place = Path(f"{place}#one")
    read_log(place)


MANIFEST = """\
teacher: [../teacher, org/name]
student: ./student
prompts: prompts.jsonl
teacher_system: "Answer."
teacher_thinking: on
k: 16
temperature: 0.7
max_states: 4096
seed: 3
dtype: float32
template_kwargs: {enable_thinking: false}
"""


def _manifests() -> Iterator[Reader]:
    rest: Tree = {"prompts.jsonl": b'{"prompt": "3 4"}\n', "student/config.json": b"{}"}

    def seeds(root: Path) -> list[Tree]:  # noqa: ARG001
        other = b"teacher: http://user:hunter2@host:8000/v1#m\nrollouts: prompts.jsonl\nout: results\njsd: true\n"
        return [
            {"opd-probe.yaml": MANIFEST.replace("../teacher", "student").encode(), **rest},
            {"opd-probe.yaml": other, **rest},
        ]

    def read(root: Path) -> None:
        from opd_probe.options.manifest import read_manifest

        read_manifest(root / "opd-probe.yaml")

    yield Reader("manifests:opd-probe.yaml", seeds, read)


# Checkpoints, adapters, tokenizers


def _checkpoints(jobs: Path | None) -> Iterator[Reader]:
    from tests.fuzz.checkpoints import MAKERS

    for name, maker in MAKERS.items():
        yield Reader(f"checkpoints:{name}", lambda root, maker=maker: _small(maker(root, jobs)), _read_headers)

    def models(root: Path) -> list[Tree]:
        return [tree for tree in _loadable(root) if not _is_adapter(tree)]

    def adapters(root: Path) -> list[Tree]:
        return [tree for tree in _loadable(root) if _is_adapter(tree)]

    yield Reader("models:loaded", models, _load)
    yield Reader("models:adapters", adapters, _load)


def _loadable(root: Path) -> Iterator[Tree]:
    """The checkpoints that a model can be made of."""
    from opd_probe.errors import OpdProbeError
    from tests.fuzz.checkpoints import MAKERS

    for name, maker in MAKERS.items():
        for number, tree in enumerate(_small(maker(root / name, None))):
            lay(tree, root / f"{name}-{number}")
            try:
                _load(root / f"{name}-{number}")
            except OpdProbeError:
                continue
            yield tree


def _is_adapter(tree: Tree) -> bool:
    return any("adapter" in name or "lora" in name for name in tree)


def _small(trees: list[Tree]) -> list[Tree]:
    return [{name: content for name, content in tree.items() if not name.endswith("latest_checkpointed_iteration.txt")}
            for tree in trees]  # fmt: skip


def _read_headers(root: Path) -> None:
    from opd_probe.models.checkpoints import headers_of, resolve_checkpoint, step_of, tokenizer_home
    from opd_probe.runs.discovery import discover
    from opd_probe.runs.inventory import inventory

    if _weight(root) % 16 == 0:  # what follows takes ten times as long
        inventory([str(root)])
        discover([str(root)])
    place = _step_below(root)
    checkpoint = resolve_checkpoint(place)
    headers_of(checkpoint)
    step_of(place)
    tokenizer_home(place)


def _weight(root: Path) -> int:
    """A number that says nothing, and is the same whenever the input is."""
    return sum(file.stat().st_size for file in root.rglob("*") if file.is_file())


def _step_below(root: Path) -> Path:
    """The directory of a step, or the only file, in what a job left."""
    inside = sorted(root.iterdir())
    steps = [path for path in inside if "-" in path.name or "step" in path.name or path.suffix == ".gguf"]
    return steps[0] if steps else root


def _load(root: Path) -> None:
    from opd_probe.models.loading import load_model
    from opd_probe.runs.discovery import discover

    (run, *_) = discover([str(root)])
    loaded = load_model(run.checkpoints[0], device="cpu")
    with torch.no_grad():
        loaded.output_layer.logits(loaded.hidden(torch.tensor([[3, 4, 5]])))


def _tokenizers() -> Iterator[Reader]:
    from tests.tiny import CHAT_TEMPLATE, QUESTION_TEMPLATE, tiny_tokenizer

    def seeds(root: Path) -> list[Tree]:
        tiny_tokenizer(12, chat_template=CHAT_TEMPLATE).save_pretrained(root / "words")
        pieces = _byte_level(root / "pieces")
        return [
            tree_of(root / "words"),
            tree_of(pieces),
            {**tree_of(pieces), "config.json": b'{"model_type": "qwen2"}'},
        ]

    def read(root: Path) -> None:
        from opd_probe.models.vocabulary import load_tokenizer, special_ids, template_digest, tokenizer_digest

        found = load_tokenizer(root, required=True)
        assert found is not None
        tokenizer_digest(found)
        template_digest(found)
        special_ids(found)
        _rendered(found, None)

    yield Reader("tokenizers:files", seeds, read)

    def templates(root: Path) -> list[Tree]:  # noqa: ARG001
        messages = json.dumps(PROMPT_ROWS[3]["messages"]).encode()
        return [{"t.jinja": text.encode(), "m.json": messages} for text in (CHAT_TEMPLATE, QUESTION_TEMPLATE)]

    def render(root: Path) -> None:
        from opd_probe.jobs.rendering import template_source
        from opd_probe.rollouts.prompts import check_messages
        from opd_probe.texts import read_json

        text = template_source(str(root / "t.jinja"))
        try:
            messages = read_json(root / "m.json")
        except (OSError, ValueError):
            messages = PROMPT_ROWS[3]["messages"]
        check_messages("messages", messages)
        _rendered(tokenizer(), text, messages)

    yield Reader("tokenizers:templates", templates, render)


def _rendered(found: Any, template: str | None, messages: Any = None) -> None:
    from opd_probe.rollouts.prompts import encode_messages, encode_text

    given = messages or [{"role": "user", "content": "3 4"}]
    if template is not None or found.chat_template is not None:
        encode_messages("messages", given, found, template=template, variables={"enable_thinking": False})
    encode_text("3 4", found)


def _byte_level(place: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        ["3 4 5 six seven"] * 3, trainers.BpeTrainer(vocab_size=270, special_tokens=["<s>", "</s>"])
    )
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", bos_token="<s>")
    made.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    made.save_pretrained(place)
    return place


# What this package stores itself


def _stored() -> Iterator[Reader]:
    frozen = Path(__file__).parent.parent / "trace" / "frozen"

    def traces(root: Path) -> list[Tree]:
        from tests.trace.test_files import small_trace

        small_trace().save(root / "t.parquet")
        older = [{"t.parquet": path.read_bytes()} for path in sorted(frozen.glob("*.parquet"))]
        return [{"t.parquet": (root / "t.parquet").read_bytes()}] * len(older) + older

    def read_trace(root: Path) -> None:
        import opd_probe

        trace = opd_probe.read_trace(root / "t.parquet")
        for _ in trace.blocks(trace.columns):
            pass
        _ = trace.warnings

    yield Reader("traces:files", traces, read_trace)
    yield Reader("traces:shown", traces, _show)
    yield Reader("spools:replay", _spool, _resume, writes=True)
    yield Reader("spools:samples", _samples, _read_samples, writes=True)


def _show(root: Path) -> None:
    import opd_probe
    from opd_probe.options.settings import parse_options
    from opd_probe.runs.stored import find_traces

    (one,) = find_traces([str(root / "t.parquet")], parse_options({}))
    _ = one.labels, one.key
    opd_probe.summarize(one.trace, k=min(4, one.trace.K), resamples=0)


_COUNTS = (3, 0, 5, 2)


def _columns() -> Any:
    from opd_probe.trace.schema import STATE_COLUMNS

    return [
        one
        for one in STATE_COLUMNS
        if one.name in ("position", "student_top_ids", "student_logprob", "teacher_top_logprobs")
    ]


def _spool(root: Path) -> list[Tree]:
    from opd_probe.trace.spool import TraceSpool

    place = root / "spool"
    spool = TraceSpool(_COUNTS, _columns(), 4, place, "the key", answers=["teacher_top_logprobs"])
    for rollout in (0, 2):
        spool.put(
            rollout,
            {
                c.name: np.ones((_COUNTS[rollout], 4) if c.shape == "top" else _COUNTS[rollout], c.dtype)
                for c in _columns()
            },
        )
    del spool
    tree = tree_of(place)
    return [{f"spool/{name}": content for name, content in tree.items()}]


def _resume(root: Path) -> None:
    from opd_probe.trace.spool import TraceSpool

    spool = TraceSpool(_COUNTS, _columns(), 4, root / "spool", "the key", answers=["teacher_top_logprobs"])
    for rollout in np.flatnonzero(spool.done):
        if _COUNTS[rollout]:
            assert all((spool.arrays[c.name][spool._rows(int(rollout))] == 1).all() for c in _columns())
    spool.discard()
    assert not (root / "spool").exists()


_KEY = {"sampler": "transformers", "seed": 3}


def _samples(root: Path) -> list[Tree]:
    from opd_probe.jobs.sampling import store_samples
    from opd_probe.models.served.dialects import Drawn
    from opd_probe.models.served.drafts import Drafts
    from opd_probe.types import Rollout

    rollouts = [
        Rollout(f"r{i}", (3, 4), (5, 6, 1), prompt_id="p", logprobs=(-0.5, -1.0, float("nan"))) for i in range(3)
    ]
    store_samples(root / "step-5.parquet", rollouts, _KEY)
    drafts = Drafts(root / ".step-5.partial", "key")
    for rollout in rollouts:
        drafts.keep(rollout.id, Drawn(list(rollout.response_ids), [-0.5, -1.0, -0.1], "stop"))
    tree = tree_of(root)
    alone = {name: tree[name] for name in tree if name.endswith(".partial")}
    return [tree, alone, {name: content for name, content in tree.items() if name not in alone}]


def _read_samples(root: Path) -> None:
    from opd_probe.jobs.sampling import stored_samples
    from opd_probe.models.served.drafts import Drafts

    Drafts(root / ".step-5.partial", "key")
    stored_samples(root / "step-5.parquet", _KEY)


# Servers


def _served() -> Iterator[Reader]:
    from opd_probe.models.served.dialects import DIALECTS
    from tests.fuzz.servers import ANSWERS

    for name in DIALECTS:
        yield Reader(f"served:{name}", ANSWERS[name], _ask)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer goes out at once
    root = Path()

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        path = self.root / self.path.lstrip("/")
        try:
            status, body = 200, path.read_bytes() if path.is_file() else b""
        except OSError:
            status, body = 500, b""
        if not path.is_file():
            status = 404
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer

    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def _serving(root: Path) -> Iterator[str]:
    handler = type("Handler", (_Handler,), {"root": root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _ask(root: Path) -> None:
    from opd_probe.models.served.client import Patience
    from opd_probe.models.served.dialects import Draw
    from opd_probe.models.served.endpoint import parse_endpoint
    from opd_probe.models.served.model import connect
    from tests.fuzz.servers import IDS, K

    with _serving(root) as url:
        model = connect(parse_endpoint(url), patience=Patience(attempts=1, read=5.0))
        _ = model.identity, model.digest, model.max_positions
        list(model.scores([(IDS, range(1, len(IDS)))], K))
        body = model.dialect.draw_request(model.entry, IDS, Draw(4, 1.0, 0, [1]))
        assert body
        drawn = root / "drawn.json"
        if drawn.is_file():
            try:
                answer = json.loads(drawn.read_bytes())
            except (ValueError, RecursionError):
                return
            model.read(lambda: model.dialect.drawn(answer, IDS))


def copied(root: Path, place: Path) -> Path:
    """A copy that a seed may change."""
    shutil.copytree(root, place)
    return place


def names(found: Sequence[Reader]) -> list[str]:
    """Their names."""
    return [one.name for one in found]

"""Each checkpoint's own responses: sampled, stored, and used again while all that decides them agrees."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from opd_probe.errors import InputError, OpdProbeError, OutOfMemoryError, OutputError, ServerError, warn_in_passing
from opd_probe.jobs.files import Files, tokenizer_of
from opd_probe.jobs.memory import memory_advice
from opd_probe.jobs.own_states import states_to_keep
from opd_probe.jobs.plan import RunPlan
from opd_probe.jobs.pool import ModelPool
from opd_probe.jobs.prompting import Prompter
from opd_probe.jobs.rendering import student_tokenizer
from opd_probe.models.digests import check_unchanged, tokenizer_files_digest, weights_digest
from opd_probe.models.generation import sample_rollouts
from opd_probe.models.hub import home_of
from opd_probe.models.loading import LoadedModel
from opd_probe.models.outline import Outline
from opd_probe.models.sampled_states import SampledStates
from opd_probe.models.samplers import sampler_version
from opd_probe.models.served.endpoint import is_url, parse_endpoint
from opd_probe.models.served.model import ServedModel
from opd_probe.models.served.sampling import sample_from_server, served_checkpoint
from opd_probe.models.vllm_sampling import sample_with_vllm
from opd_probe.models.vocabulary import shared_vocabulary, template_digest, tokenizer_digest
from opd_probe.options.settings import Settings
from opd_probe.output import existing_directory, remove_file, write_bytes
from opd_probe.progress import Progress
from opd_probe.rollouts.chat import chat_variables
from opd_probe.rollouts.files import read_rollouts, rollouts_digest, write_rollouts
from opd_probe.rollouts.prompts import encode_prompts
from opd_probe.rollouts.selection import drawn
from opd_probe.texts import read_json
from opd_probe.types import Checkpoint, Prompt, Rollout

Described = LoadedModel | Outline | ServedModel
"""What is known of a teacher before anything is sampled: its vocabulary and its positions."""

KEY_VERSION = 3
"""Raised when the same key would lead to other samples."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """Samples from one checkpoint after another; what is stored and still fits is used again.

    Attributes:
        directory: where the samples of each run are stored, one folder per run.
    """

    directory: Path
    pool: ModelPool
    files: Files
    prompter: Prompter
    progress: Progress

    def sampled(self, plan: RunPlan, checkpoint: Checkpoint) -> tuple[list[Rollout], SampledStates | None]:
        """A checkpoint's own responses to its run's prompts, and its hidden states where they were kept.

        Raises:
            OpdProbeError: prompts that cannot be encoded, or responses longer than the model's positions.
        """
        prompts = self.files.prompts(plan)
        path = self.directory / plan.folder / f"{step_name(checkpoint)}.parquet"
        teachers = [teacher.checkpoint for teacher in plan.teachers]
        key = sampling_key(checkpoint, teachers, prompts, plan.settings, plan.tokenizer)
        rollouts, states = stored_samples(path, key), None
        if rollouts is None:
            others = self.pool.sampled_teachers(plan)
            for teacher, model in zip(plan.teachers, others, strict=True):
                read = self.prompter.lengths(plan, checkpoint, teacher, prompts)
                if read is not None:
                    _check_positions(max(read), model, plan.settings.max_new_tokens)
            student = self.pool.sampled_student(plan, checkpoint)
            check_unchanged(checkpoint, key["weights"])
            drafts = drafts_path(path, checkpoint)
            states = states_to_keep(student, plan.settings, existing_directory(self.directory))
            rollouts = draw(student, others, checkpoint, prompts, plan.settings, self.progress, drafts, key, states)
            store_samples(path, rollouts, key)
            with suppress(OSError):  # what is left there is of no harm
                drafts.unlink(missing_ok=True)
        # What rollouts carry along decides no draw: it is as the prompts say today, whenever they were drawn.
        carried = {prompt.id: prompt.carried for prompt in prompts}
        rollouts = [replace(rollout, extra=carried[rollout.prompt_id or ""]) for rollout in rollouts]
        return drawn(rollouts, plan.settings.max_states, plan.settings.seed), states


def step_name(checkpoint: Checkpoint) -> str:
    """The name, without suffix, of a checkpoint's files."""
    return f"step-{'unknown' if checkpoint.step is None else checkpoint.step}"


def check_pair(student: LoadedModel | Outline, teacher: Described, settings: Settings) -> None:
    """Refuse a pair of models before anything is written.

    Raises:
        VocabularyError: their tokenizers differ.
        InputError: k is beyond the ids that they share.
    """
    allow = settings.allow_special_mismatch
    size = shared_vocabulary(student, teacher, allow_special_mismatch=allow).size
    if settings.k > size:
        raise InputError(
            f"k = {settings.k}: beyond the shared vocabulary of {size} tokens ({student.name} and "
            f"{teacher.name}); lower --k"
        )


def allowed_ids(
    student: LoadedModel | Outline, teachers: Sequence[Described], settings: Settings
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """int64, ascending: what may be sampled, the ids that the student shares with every teacher.

    Without a teacher they are those that the student's own tokenizer knows. Ids that stand for pieces of an image, a
    video or a sound are not among them, nor are those of an output layer that the embeddings do not have.
    """
    allow = settings.allow_special_mismatch
    shared = [shared_vocabulary(student, other, allow_special_mismatch=allow).ids for other in teachers or [student]]
    no_text = [one.placeholder_ids for one in (student, *teachers) if not isinstance(one, ServedModel)]
    ids = np.setdiff1d(
        reduce(np.intersect1d, shared), np.concatenate([np.array(ids, dtype=np.int64) for ids in no_text])
    )
    return ids[ids < min((one.readable for one in (student, *teachers) if isinstance(one, LoadedModel)), default=2**62)]


def each_once(models: Iterable[Described]) -> list[Described]:
    """The models without repetition: one that reads several prompts is several teachers."""
    return list({id(model): model for model in models}.values())


def draw(
    student: LoadedModel | Outline,
    teachers: Sequence[Described],
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt],
    settings: Settings,
    progress: Progress,
    drafts: Path | None = None,
    key: Mapping[str, Any] | None = None,
    states: SampledStates | None = None,
) -> list[Rollout]:
    """Sample ``num_rollouts`` responses to each prompt, of ids that all teachers share.

    Args:
        student: loaded; in outline, vLLM or the server of the settings samples from the checkpoint.
        drafts: the file that keeps responses as they end, for when the same is asked for again; vLLM keeps none.
        key: what decides the draws, see :func:`sampling_key`.
        states: takes the hidden states of a loaded student.

    Raises:
        OpdProbeError: prompts that cannot be encoded, models that do not fit, or responses that could become
            longer than the positions of one of them.
    """
    teachers = each_once(teachers)
    for teacher in teachers:
        check_pair(student, teacher, settings)
    encoded = encode_prompts(prompts, student_tokenizer(student.tokenizer, settings))
    longest = max((len(prompt.ids or ()) for prompt in encoded), default=0)
    for teacher in teachers:
        _check_positions(longest, teacher, settings.max_new_tokens)
    progress.begin(f"sample {checkpoint.run or checkpoint.path} {step_name(checkpoint)}")
    how: dict[str, Any] = {
        "allowed_ids": allowed_ids(student, teachers, settings),
        "num_rollouts": settings.num_rollouts,
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.sample_temperature,
        "seed": settings.seed,
        "step": checkpoint.step,
        "progress": progress.update,
    }
    with _no_drafts_of_bad_input(drafts), memory_advice("sampling"):
        if isinstance(student, LoadedModel):
            return sample_rollouts(
                student,
                encoded,
                batch_tokens=settings.batch_tokens,
                length_factors=settings.length_factors,
                drafts=drafts,
                key=json.dumps(key, sort_keys=True),
                states=states,
                **how,
            )
        if is_url(settings.sampler):
            served = _server(settings.sampler, checkpoint)
            return sample_from_server(student, served, encoded, drafts=drafts, **how)
        return sample_with_vllm(student, checkpoint, encoded, dtype=settings.dtype, **how)


@contextmanager
def _no_drafts_of_bad_input(drafts: Path | None) -> Iterator[None]:
    """After bad input nothing is kept; what an interrupt, a lack of memory or of disk, or a server cuts short is."""
    made = [] if drafts is None else [folder for folder in drafts.parents if not folder.exists()]
    try:
        yield
    except OpdProbeError as error:
        if drafts is not None and not isinstance(error, (OutOfMemoryError, OutputError, ServerError)):
            with suppress(OSError):  # not empty: it stays
                drafts.unlink(missing_ok=True)
                for folder in made:
                    folder.rmdir()
        raise


def drafts_path(path: Path, checkpoint: Checkpoint) -> Path:
    """Beside the file that a checkpoint's samples go to: where those wait that have been drawn already."""
    return path.with_name(f".{path.name}.{step_name(checkpoint)}.partial")


def _server(url: str, checkpoint: Checkpoint) -> ServedModel:
    """The model of a server that is the checkpoint; that checkpoints can be told apart is known by now."""
    return served_checkpoint(parse_endpoint(url), checkpoint, alone=True)


def _made_by(settings: Settings, checkpoint: Checkpoint) -> str:
    """What draws: a version matters but for the built-in sampler, whose draws are made of our own uniform numbers."""
    if settings.sampler == "transformers":
        return settings.sampler
    if is_url(settings.sampler):
        served = _server(settings.sampler, checkpoint)
        return f"{served.made_by} as {served.model}"
    return sampler_version(settings.sampler)


def _check_positions(longest: int, model: Described, new_tokens: int) -> None:
    limit = model.max_positions
    if limit is not None and longest + new_tokens > limit:
        raise InputError(
            f"prompts of up to {longest} tokens and {new_tokens} new ones need more than the {limit} positions "
            f"of {model.name}; lower --max-new-tokens"
        )


def sampling_key(
    checkpoint: Checkpoint,
    teachers: Sequence[Checkpoint | ServedModel],
    prompts: Sequence[Prompt],
    settings: Settings,
    tokenizer: str | None,
) -> dict[str, Any]:
    """Everything that decides a draw, in JSON types, without loading a model.

    Teachers matter by their vocabularies alone, since only shared ids may be sampled.
    """
    own = tokenizer_of(checkpoint, tokenizer)
    vocabularies = {
        (_digest_of(one.tokenizer), 0)
        if isinstance(one, ServedModel)
        else (_digest_of(tokenizer_of(one, tokenizer)), _vocabulary_size(one))
        for one in teachers
    }
    return {
        "version": KEY_VERSION,
        "sampler": _made_by(settings, checkpoint),
        "weights": weights_digest(checkpoint),
        "tokenizer": _digest_of(own),
        "tokenizer files": tokenizer_files_digest(tokenizer or checkpoint),
        "template": None if own is None else template_digest(student_tokenizer(own, settings)),
        "prompts": prompts_digest(prompts),
        "vocabularies": sorted([digest or "", size] for digest, size in vocabularies),
        "num_rollouts": settings.num_rollouts,
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.sample_temperature,
        "seed": settings.seed,
        "dtype": settings.dtype,
        "allow_special_mismatch": settings.allow_special_mismatch,
        # No whole is there yet: the prefix decides then.
        "length_factors": "server" if settings.length_factors == "server" else "prefix",
    }


def _digest_of(tokenizer: Any) -> str | None:
    return None if tokenizer is None else tokenizer_digest(tokenizer)


def _vocabulary_size(checkpoint: Checkpoint) -> int:
    """What config.json calls vocab_size; 0 where it does not say, as beside an adapter."""
    try:
        config = read_json(home_of(checkpoint) / "config.json")
    except (OSError, ValueError):
        return 0
    text = config.get("text_config") or {}
    return int(config.get("vocab_size") or text.get("vocab_size") or 0)


def stored_samples(path: Path, key: dict[str, Any]) -> list[Rollout] | None:
    """The samples stored at ``path`` when they were drawn under ``key`` and are whole, else None.

    Those of another sampler are warned about, since sampling anew replaces them.
    """
    try:
        record = read_json(_record_path(path))
    except (OSError, ValueError):
        return None
    made = record.get("key") if isinstance(record, dict) else None
    if not path.is_file() or made != key:
        if path.is_file() and isinstance(made, dict) and made.get("sampler", key["sampler"]) != key["sampler"]:
            warn_in_passing(f"samples {path}: made by {made['sampler']}, asked for is {key['sampler']}; sampled anew")
        return None
    try:
        rollouts = read_rollouts(path)
    except InputError as error:
        warn_in_passing(f"{error}; sampled anew")
        return None
    return rollouts if rollouts_digest(rollouts) == record.get("rollouts_sha256") else None


def store_samples(path: Path, rollouts: Sequence[Rollout], key: dict[str, Any]) -> None:
    """Write samples and, last, the record that makes them usable again."""
    record = {"key": key, "rollouts_sha256": rollouts_digest(rollouts)}
    remove_file(_record_path(path))
    write_rollouts(path, rollouts)
    write_bytes(_record_path(path), json.dumps(record, indent=2, sort_keys=True).encode())


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """sha256 over what decides the draws from prompts, in order."""
    content = [
        {name: value for name, value in asdict(prompt).items() if name != "extra"}
        | chat_variables(f"prompt {prompt.id!r}", prompt.extra)
        for prompt in prompts
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=list).encode()).hexdigest()


def named_by_step(rollouts: Sequence[Rollout], checkpoint: Checkpoint) -> list[Rollout]:
    """The rollouts under ids that differ from those of the run's other checkpoints."""
    return [replace(rollout, id=f"{step_name(checkpoint)}/{rollout.id}") for rollout in rollouts]

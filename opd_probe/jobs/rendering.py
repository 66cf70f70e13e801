"""By which chat template a run's students read their prompts, and whether that is one for all of them."""

from __future__ import annotations

from typing import Any

from opd_probe.errors import InputError, warn
from opd_probe.jobs.plan import RunPlan
from opd_probe.models.splitting import TEMPLATE, tokenizers_differ
from opd_probe.models.vocabulary import chat_template_of, load_tokenizer, with_template
from opd_probe.options.naming import user_path
from opd_probe.options.settings import Settings
from opd_probe.rollouts.chat import thinking_variable
from opd_probe.rollouts.prompts import render_messages
from opd_probe.texts import read_text
from opd_probe.types import Prompt, Rollout

PROBE = ({"role": "user", "content": "1 + 1 = ?"},)
"""What a template is asked with, whether it knows a variable."""


def template_source(place: str, option: str = "--template") -> str:
    """The Jinja source that an option names: a file with it, or a model whose tokenizer has it.

    Raises:
        InputError: a file that cannot be read as text, or a tokenizer without a chat template.
        MissingError: there is no such model.
    """
    path = user_path(place)
    if path.is_file():
        try:
            return read_text(path)
        except UnicodeDecodeError:
            raise InputError(f"{option} {place}: not UTF-8 text; expected a Jinja chat template") from None
        except OSError as error:
            raise InputError(f"{option} {place}: cannot be read ({error.strerror})") from None
    template = chat_template_of(load_tokenizer(path if path.exists() else place, required=True))
    if template is None:
        raise InputError(
            f"{option} {place}: its tokenizer has no chat template; name a file with one, or another model"
        )
    return template


def student_tokenizer(tokenizer: Any, settings: Settings) -> Any:
    """A student's tokenizer with the chat template that the settings name.

    Raises:
        OpdProbeError: as :func:`template_source`.
    """
    return tokenizer if settings.template is None else with_template(tokenizer, template_source(settings.template))


def thinking_of(tokenizer: Any, name: str, thinking: str) -> dict[str, bool]:
    """The template variable that switches thinking ``on`` or ``off``, for the template of a student's tokenizer.

    Args:
        name: of the student, for messages.

    Raises:
        InputError: the template knows no thinking mode.
    """

    def differs(variable: str) -> bool:
        one, other = (
            render_messages("--thinking", PROBE, tokenizer, variables={variable: mode}) for mode in (True, False)
        )
        return one != other

    return thinking_variable("--thinking", f"of {name}", thinking == "on", differs)


def warn_of_readings(run: RunPlan, texts: list[Prompt] | list[Rollout]) -> None:
    """Say when the checkpoints of a run make other prompts of the same messages, or other ids of the same text.

    Args:
        texts: of what the run's states come; those that are ids already are read alike by all.
    """
    if run.tokenizer is not None:
        return
    made = [one for one in texts if _is_text(one)]
    chat = any(one.messages is not None if isinstance(one, Prompt) else one.extra.get("messages") for one in made)
    if not made:
        return
    ignored = {TEMPLATE} if run.settings.template is not None or not chat else set()
    differing = [(one, [p for p in parts if p not in ignored]) for one, parts in tokenizers_differ(run.run.checkpoints)]
    differing = [(one, parts) for one, parts in differing if parts]
    if differing:
        steps = [("unknown" if one.step is None else str(one.step)) for one, _ in differing]
        parts = sorted({part for _, found in differing for part in found})
        option = "--template" if parts == [TEMPLATE] else "--tokenizer"
        warn(
            f"run {run.run.name}: {run.run.unit} {', '.join(steps)} make other ids of the same "
            f"{'messages' if chat else 'text'} than the first checkpoint ({', '.join(parts)}), so that one curve joins "
            f"answers to different prompts; {option} PATH gives all of them one"
        )


def _is_text(one: Prompt | Rollout) -> bool:
    return one.ids is None if isinstance(one, Prompt) else one.token_source == "retokenized"

"""What a teacher reads before a response when that is not what the student read: the rollout's chat messages, rendered
anew."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opd_probe.errors import InputError
from opd_probe.rollouts.chat import chat_variables, text_of, thinking_variable
from opd_probe.rollouts.prompts import check_messages, encode_messages, render_messages
from opd_probe.types import Rollout

STUDENT, OWN = "student", "own"
"""Words in place of a template: that of the student's tokenizer, and that of the teacher's."""

CONTEXT = "context"
"""The variable in which a template finds the context; one that does not ask for it gets it in the last user message."""

_FIELD = re.compile(r"\{([\w.-]+)\}")
_SYSTEM_ROLES = ("system", "developer")
_OWN_FIELDS = ("answer", "prompt", "response", "score", "step", "finish_reason")

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class TeacherPrompt:
    """How a teacher's prompt is made of a rollout's chat messages; by default all is as the student read it.

    Attributes:
        template: ``"student"``, ``"own"``, or where a chat template is: a Jinja file, a model or a tokenizer.
        system: the system message, in place of the one there or in front; empty: none. None: as in the messages.
        thinking: the template's thinking mode. None: as the template has it by default.
        context: what the teacher reads beyond the messages: a field of the rollout or of its prompt, with dots for
            fields of fields, or a text with such fields in braces.
    """

    template: str = STUDENT
    system: str | None = None
    thinking: bool | None = None
    context: str | None = None


@dataclass(frozen=True, slots=True)
class TeacherPrompts:
    """The prompts of one teacher.

    Attributes:
        ids: for each rollout the token ids before its response.
        made: JSON values that say how they came about, for provenance.
    """

    ids: Sequence[Sequence[int]]
    made: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """Over all ids."""
        return hashlib.sha256(json.dumps([list(ids) for ids in self.ids]).encode()).hexdigest()


class PromptMaker:
    """Makes prompts by one recipe, with one tokenizer; equal messages and contexts are rendered once.

    Args:
        template: Jinja source, where ``wanted.template`` leads.
        name: of the template, for messages.
        tokenizer: the teacher's.
    """

    def __init__(self, wanted: TeacherPrompt, template: str, name: str, tokenizer: Any) -> None:
        self.wanted, self.template, self.name, self.tokenizer = wanted, template, name, tokenizer
        self._made: dict[str, tuple[int, ...]] = {}
        self._thinking: dict[str, Any] | None = None
        self._takes_context: bool | None = None

    def ids(self, rollouts: Sequence[Rollout], what: str = "rollout") -> list[tuple[int, ...]]:
        """The token ids of each rollout's prompt.

        Args:
            what: the rollouts are called in messages.

        Raises:
            InputError: a rollout without chat messages or without the context, or a template that refuses them or knows
                no thinking mode.
        """
        given, own = [], []
        for rollout in rollouts:
            place = f"{what} {rollout.id!r}"
            context = None if self.wanted.context is None else context_of(place, rollout, self.wanted.context)
            messages = with_system(messages_of(place, rollout), self.wanted.system)
            given.append((place, messages, context))
            own.append(chat_variables(place, rollout.extra))
        thinking = self._thinking_variable(given)
        result = []
        for (place, messages, context), variables in zip(given, own, strict=True):
            key = json.dumps([messages, context, variables], sort_keys=True, default=str)
            if key not in self._made:
                self._made[key] = tuple(self._encoded(place, messages, context, variables | thinking))
                if not self._made[key]:
                    raise InputError(f"{place}: the chat template {self.name} makes an empty prompt of the messages")
            result.append(self._made[key])
        return result

    def prompts(self, rollouts: Sequence[Rollout]) -> TeacherPrompts:
        """The prompts of the rollouts, with what made them.

        Raises:
            InputError: as :meth:`ids`.
        """
        wanted = self.wanted
        made = {
            "template": wanted.template,
            "template_sha256": hashlib.sha256(json.dumps(self.template).encode()).hexdigest(),
            "system": wanted.system,
            "thinking": wanted.thinking,
            "context": wanted.context,
        }
        return TeacherPrompts(self.ids(rollouts), made)

    def _encoded(self, place: str, messages: Messages, context: str | None, variables: Mapping[str, Any]) -> list[int]:
        if context is not None:
            if self._takes_context is None:
                self._takes_context = self._differs(place, messages, CONTEXT, ("one context", "another"))
            if self._takes_context:
                variables = {**variables, CONTEXT: context}
            else:
                messages = with_context(place, messages, context)
        return encode_messages(place, messages, self.tokenizer, template=self.template, variables=variables)

    def _thinking_variable(self, given: Sequence[tuple[str, Messages, str | None]]) -> dict[str, Any]:
        """The variable by which the template takes the thinking mode that is wanted: the one that changes something."""
        if self.wanted.thinking is None or not given:
            return {}
        if self._thinking is None:

            def differs(name: str) -> bool:
                return any(self._differs(place, messages, name, (True, False)) for place, messages, _ in given)

            self._thinking = thinking_variable("--teacher-thinking", self.name, self.wanted.thinking, differs)
        return self._thinking

    def _differs(self, place: str, messages: Messages, variable: str, values: tuple[Any, Any]) -> bool:
        """Whether a variable changes what the template says."""
        one, other = (
            render_messages(place, messages, self.tokenizer, template=self.template, variables={variable: value})
            for value in values
        )
        return one != other


def messages_of(place: str, rollout: Rollout) -> list[Mapping[str, Any]]:
    """The chat messages that a rollout's prompt was made of, without the response where it stands among them.

    Raises:
        InputError: there are none.
    """
    messages = rollout.extra.get("messages")
    if messages is None:
        raise InputError(
            f"{place}: no chat messages (only {'token ids' if rollout.prompt is None else 'text'}), of which a "
            "teacher's own prompt is made; give them in a field 'messages', or have the teacher read what the student "
            "read"
        )
    check_messages(place, messages)
    kept = list(messages)
    if kept[-1]["role"] == "assistant" and _is_response(place, kept[-1], rollout):
        kept.pop()
    if not kept:
        raise InputError(f"{place}: messages hold a response alone; expected those of the prompt too")
    return kept


def _is_response(place: str, message: Mapping[str, Any], rollout: Rollout) -> bool:
    """Whether a last turn of the assistant is the response, and not the beginning of one that the prompt ends in."""
    return rollout.response is None or text_of(place, message).strip() == rollout.response.strip()


def with_system(messages: Messages, system: str | None) -> list[Mapping[str, Any]]:
    """The messages with another system message: in place of the first, or in front; empty: without one."""
    kept = list(messages)
    if system is None:
        return kept
    role = "system"
    if kept[0]["role"] in _SYSTEM_ROLES:
        role = kept.pop(0)["role"]
    return [{"role": role, "content": system}, *kept] if system else kept


def with_context(place: str, messages: Messages, context: str) -> list[Mapping[str, Any]]:
    """The messages with the context at the end of the last user message, after a blank line.

    Raises:
        InputError: no message is the user's.
    """
    kept = list(messages)
    for index in reversed(range(len(kept))):
        content = kept[index].get("content")
        if kept[index]["role"] != "user" or content is None:
            continue
        if isinstance(content, str):
            content = f"{content}\n\n{context}"
        else:  # parts, as models that see images have them
            content = [*content, {"type": "text", "text": f"\n\n{context}"}]
        kept[index] = {**kept[index], "content": content}
        return kept
    raise InputError(
        f"{place}: no message of the user, at whose end the context would stand; give a chat template "
        "that says where: {{ context }}"
    )


def context_fields(context: str) -> list[str]:
    """The fields that a context names: those in braces, else the whole of it."""
    return _FIELD.findall(context) or [context]


def context_of(place: str, rollout: Rollout, context: str) -> str:
    """The context as text: the field, or the text with its fields filled in.

    Raises:
        InputError: the rollout lacks a field; names those that it has.
    """
    if not _FIELD.search(context):
        return _field(place, rollout, context)
    return _FIELD.sub(lambda match: _field(place, rollout, match.group(1)), context)


def _field(place: str, rollout: Rollout, name: str) -> str:
    known: dict[str, Any] = {field: getattr(rollout, field) for field in _OWN_FIELDS} | dict(rollout.extra)
    value: Any = known.get(name)
    if value is None:
        value = known
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    if value is None:
        raise InputError(
            f"{place}: no field {name!r} for --teacher-context; it has {', '.join(_names(known)) or 'none'}"
        )
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _names(known: Mapping[str, Any]) -> list[str]:
    """Fields that hold something, those of fields with a dot."""
    names = []
    for name, value in known.items():
        if isinstance(value, Mapping):
            names += [f"{name}.{inner}" for inner, held in value.items() if held is not None]
        elif value is not None and name != "messages":
            names.append(name)
    return sorted(names)


def given_prompts(prompts: Sequence[Any], rollouts: Sequence[Rollout], tokenizer: Callable[[], Any]) -> TeacherPrompts:
    """Prompts as a program gives them: for each rollout token ids, or chat messages for the teacher's own template.

    Args:
        tokenizer: loads the teacher's tokenizer; called when there are messages.

    Raises:
        InputError: not one for each rollout, neither ids nor messages, or no tokenizer with a chat template.
    """
    known = not isinstance(prompts, (str, Mapping)) and hasattr(prompts, "__len__")
    if not known or len(prompts) != len(rollouts):
        count = len(prompts) if known else type(prompts).__name__
        raise InputError(f"teacher_prompts: {count} for {len(rollouts)} rollouts; expected a list with one for each")
    ids: list[tuple[int, ...]] = []
    loaded: Any = None
    chats = 0
    for rollout, prompt in zip(rollouts, prompts, strict=True):
        place = f"rollout {rollout.id!r}: its teacher prompt"
        if isinstance(prompt, (str, Mapping)) or not hasattr(prompt, "__len__"):
            raise InputError(f"{place} is {type(prompt).__name__}; expected token ids or chat messages")
        if len(prompt) and isinstance(prompt[0], Mapping):
            check_messages(place, prompt)
            loaded = tokenizer() if loaded is None else loaded
            if getattr(loaded, "chat_template", None) is None:
                raise InputError(f"{place} is chat messages, and the teacher has no chat template; give token ids")
            chats += 1
            ids.append(tuple(encode_messages(place, prompt, loaded)))
            continue
        try:
            ids.append(tuple(int(token) if int(token) == token else _refuse(token) for token in prompt))
        except (TypeError, ValueError):
            raise InputError(f"{place} holds something else than token ids; expected whole numbers") from None
    return TeacherPrompts(ids, {"source": "ids" if not chats else "messages"})


def _refuse(token: Any) -> int:
    raise ValueError(token)

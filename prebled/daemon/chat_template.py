"""Turns a chat into the text that its model was trained on, with the model's own Jinja template.

The rule: the same text as transformers' `apply_chat_template(..., add_generation_prompt=True)` gives, whatever tricks a
template plays, and nothing that a template or a message holds can reach outside the sandbox. Not known here: tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prebled.errors import RequestError, SettingsError
from prebled.messages import ChatMessage


class ChatTemplate:
    """One model's template, compiled. `special_tokens` are the names it may use: `bos_token`, `eos_token`, ..."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises SettingsError if the template does not compile."""
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise SettingsError(f"the model's chat template does not compile: {error}") from error
        self._special_tokens: dict[str, Any] = dict(special_tokens)

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The prompt for the assistant's next turn. Raises RequestError with the template's own words where it refuses
        the messages (roles that do not alternate, ...) or stumbles over them."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        names = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": True}
        try:
            return self._template.render(self._special_tokens | names)
        except TemplateError as error:
            problem = f"refuses the messages: {error}"
            raise RequestError(f"the model's chat template {problem}", param="messages") from error
        except Exception as error:  # a template is a program, run on the client's values: any error can come out
            problem = f"fails on the messages: {type(error).__name__}: {error}"
            raise RequestError(f"the model's chat template {problem}", param="messages") from error


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks what an assistant said, for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Unlike Jinja's own filter it escapes nothing for HTML; options as transformers has them."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

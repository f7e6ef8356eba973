"""Chat templates: as transformers renders them, with refusals that name the problem, and inside a sandbox."""

from __future__ import annotations

import re

import pytest

from prebled.daemon.chat_template import ChatTemplate
from prebled.errors import RequestError, SettingsError
from prebled.messages import ChatMessage

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = [ChatMessage("system", "Be brief."), ChatMessage("user", "Hi <b>&</b>"), ChatMessage("assistant", "Hello.")]


def render(source: str, messages: list[ChatMessage] = CHAT) -> str:
    return ChatTemplate(source, TOKENS).render(messages)


def test_tokens_messages_and_the_generation_prompt() -> None:
    source = """{{ bos_token }}
{%- for m in messages %}
[{{ m.role }}] {{ m['content'] }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}[assistant]{% endif %}"""
    assert render(source, CHAT[:2]) == "<s>[system] Be brief.</s>\n[user] Hi <b>&</b></s>\n[assistant]"


def test_blocks_are_trimmed() -> None:
    assert render("a\n  {% if true %}\nb\n  {% endif %}\nc") == "a\nb\nc"


def test_tools_and_documents_are_absent_but_named() -> None:
    assert render("{{ tools is none }} {{ documents is none }} {{ nonsense is defined }}") == "True True False"


def test_tojson_escapes_nothing() -> None:
    assert render("{{ messages[1] | tojson }}") == '{"role": "user", "content": "Hi <b>&</b>"}'
    assert render("{{ {'b': 'é', 'a': 1} | tojson(indent=1, sort_keys=true) }}") == '{\n "a": 1,\n "b": "é"\n}'


def test_loop_controls_and_generation_blocks() -> None:
    source = "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ loop.index }}{% endfor %}"
    assert render(source) == "12"
    assert render("{% generation %}{{ messages[2].content }}{% endgeneration %}!") == "Hello.!"


def test_today_is_known() -> None:
    assert re.fullmatch(r"20\d\d-\d\d", render("{{ strftime_now('%Y-%m') }}"))


def test_a_refusal_carries_the_templates_words() -> None:
    source = "{{ raise_exception('roles must alternate, not ' + messages[0].role) }}"
    with pytest.raises(RequestError, match="roles must alternate, not system") as caught:
        render(source)
    assert caught.value.param == "messages"
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "source",
    ["{{ messages[9].content.strip() }}", "{{ messages[0].content + 1 }}", "{{ 1 // 0 }}", "{{ messages.x.y }}"],
)
def test_a_template_that_stumbles_is_a_refusal_too(source: str) -> None:
    with pytest.raises(RequestError, match="chat template"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.json }}",
        "{% for i in range(99999999) %}x{% endfor %}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(RequestError, match="chat template"):
        render(source)


def test_a_message_is_text_and_never_a_template() -> None:
    assert render("{{ messages[0].content }}", [ChatMessage("user", "{{ 7 * 7 }}{% x")]) == "{{ 7 * 7 }}{% x"


def test_a_template_that_does_not_compile_is_a_setting_error() -> None:
    with pytest.raises(SettingsError, match="endfor"):
        ChatTemplate("{% for x in y %}", {})

"""Chat templates render as transformers renders them; names that the server sets are refused."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from services.core.errors import InvalidArgumentError
from services.gateway.http.openai.chat_template import ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "<sep>", "mask_token": "<mask>"}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": 'Keep the <b>lamp</b> & the "log".'},
    {"role": "user", "content": "Is it lit?\n"},
    {"role": "assistant", "content": "Ja, 灯."},
    {"role": "user", "content": "And now?"},
]
LOOP = "{% for m in messages %}"
TEMPLATES = {
    "generation": LOOP + "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>{% endgeneration %}"
    "{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}",
    "generation keeps its variables": "{% set n = 1 %}{% generation %}{% set n = 2 %}{{ n }}{% endgeneration %}{{ n }}",
    "tojson": LOOP + "{{ m | tojson }}{{ m | tojson(indent=2) }}{{ m | tojson(ensure_ascii=true) }}"
    "{{ m | tojson(separators=(',', ':'), sort_keys=true) }}{% endfor %}",
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ sep_token }}{{ mask_token }}[{{ pad_token }}]"
    "{{ cls_token is defined }}",
    "tools": "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}{% if tools %}no{% endif %}",
    "loop controls": LOOP + "{% if loop.index > 2 %}{% break %}{% endif %}{{ loop.index }}{% endfor %}",
    "whitespace": "{% for m in messages %}\n    {% if true %}\n  {{- m.content }}\n    {% endif %}\n{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}" + LOOP + "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "html": LOOP + "{{ m.content | trim }}{% endfor %}",
    "date": "{{ strftime_now('%Y-%m-%d') }}",
    "options": "{{ enable_thinking is defined and enable_thinking }}",
}


@pytest.mark.parametrize("options", [{}, {"enable_thinking": True}], ids=["plain", "with options"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_as_in_transformers(name: str, options: dict[str, Any]) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), **SPECIAL
    )
    expected = tokenizer.apply_chat_template(
        MESSAGES, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=True, **options
    )
    config = {**SPECIAL, "sep_token": {"content": "<sep>", "__type": "AddedToken"}, "pad_token": None}
    assert ChatTemplate(TEMPLATES[name], config).render(MESSAGES, options) == expected


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('roles must alternate') }}", "{{ messages[9].content }}", "{{ 1 // 0 }}", "{{ none.x.y }}"],
)
def test_what_a_template_raises_is_the_callers_error(template: str) -> None:
    with pytest.raises(InvalidArgumentError, match="messages: refused by the chat template"):
        ChatTemplate(template, {}).render(MESSAGES, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("messages", []),
        ("bos_token", "ZZZ"),
        ("mask_token", ""),
        ("tools", [{"name": "look"}]),
        ("documents", ["a"]),
        ("add_generation_prompt", False),
        ("raise_exception", "x"),
        ("namespace", 1),
    ],
)
def test_a_name_that_the_server_sets_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"chat_template_kwargs\.{name}: not supported"):
        ChatTemplate("{{ messages[0].content }}", {}).render(MESSAGES, {name: value})


def test_what_the_server_sets_anyway_may_be_said() -> None:
    said = {"tools": [], "documents": None, "add_generation_prompt": True}
    assert ChatTemplate(TEMPLATES["tools"], {}).render(MESSAGES, said) == "TrueTrueTrue"

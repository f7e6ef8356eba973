"""The tiny model: the same everywhere, whole, and never written over something else."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from prebled.errors import SettingsError
from prebled.tiny_model import EOS_TOKEN_IDS, VOCAB_SIZE, write_tiny_model

TOOL_PROMPT = json.dumps(
    {
        "name": "search_flights_for_travel_partner",
        "description": 'This is the subfunction for tool "travel_partner", you can use this tool. The description of '
        'this function is: "Search for the cheapest flights between two cities on a given date and return the prices"',
        "parameters": {
            "type": "object",
            "properties": {"origin": {"type": "string", "description": "City of departure", "example_value": "Paris"}},
            "required": ["origin"],
            "optional": [],
        },
    }
)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_arguments_give_the_same_files(tiny_model: Path, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "a")
    assert contents(tmp_path / "a") == contents(tiny_model)
    write_tiny_model(tmp_path / "b", seed=1)
    assert contents(tmp_path / "b")["model.safetensors"] != contents(tiny_model)["model.safetensors"]
    assert contents(tmp_path / "b")["tokenizer.json"] == contents(tiny_model)["tokenizer.json"]


def test_vocabulary_weights_and_config_agree(tiny_model: Path) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    weights = load_file(tiny_model / "model.safetensors")
    assert config["vocab_size"] == tokenizer.get_vocab_size() == VOCAB_SIZE
    assert weights["model.embed_tokens.weight"].shape == weights["lm_head.weight"].shape == (VOCAB_SIZE, 128)
    assert all(tokenizer.id_to_token(token) is not None for token in range(VOCAB_SIZE))
    assert isinstance(tokenizer.decode(list(range(VOCAB_SIZE)), skip_special_tokens=False), str)
    generation = json.loads((tiny_model / "generation_config.json").read_text())
    assert config["eos_token_id"] == generation["eos_token_id"] == list(EOS_TOKEN_IDS)


@pytest.mark.parametrize("text", [TOOL_PROMPT, "Grüße, 世界 🎉\n\tx  y\r\n", "", "\x00<s>"])
def test_text_survives_the_round_trip(tiny_model: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_tool_prompts_take_about_three_characters_per_token(tiny_model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    assert len(TOOL_PROMPT) / len(tokenizer.encode(TOOL_PROMPT).ids) > 2.8


def test_the_chat_template_uses_the_special_tokens(tiny_model: Path) -> None:
    config = json.loads((tiny_model / "tokenizer_config.json").read_text())
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    text = jinja2.Template(config["chat_template"]).render(messages=messages, add_generation_prompt=True)
    assert text == ("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = Tokenizer.from_file(str(tiny_model / "tokenizer.json")).encode(text).ids
    assert (ids.count(1), ids.count(2)) == (3, 2)


def test_the_context_is_as_asked_for(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, context_tokens=512)
    assert json.loads((tmp_path / "config.json").read_text())["max_position_embeddings"] == 512
    with pytest.raises(SettingsError, match="not 0"):
        write_tiny_model(tmp_path, context_tokens=0)


def test_only_a_tiny_model_is_written_over(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tiny", seed=1)
    write_tiny_model(tmp_path / "tiny")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(SettingsError, match="other is not empty"):
        write_tiny_model(other)
    assert len(contents(other)) == 1
    with pytest.raises(SettingsError, match="is not a folder"):
        write_tiny_model(other / "config.json")


@pytest.mark.sglang
def test_transformers_loads_it_and_answers_hang_on_the_whole_prompt(tiny_model: Path) -> None:
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    done = subprocess.run(
        [sys.executable, "-c", GENERATE, str(tiny_model)], capture_output=True, text=True, timeout=100, check=True
    )
    first, changed = json.loads(done.stdout.splitlines()[-1])
    assert first != changed
    assert len(set(first)) > 20
    assert not set(EOS_TOKEN_IDS) & set(first[:8])


GENERATE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
answers = []
for word in ("red", "blue"):
    chat = [{"role": "user", "content": f"The {word} house. " + "Tell me about the weather. " * 12}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = prompt["input_ids"]
    out = model.generate(ids, max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0)
    answers.append(out[0, ids.shape[1]:].tolist())
print(json.dumps(answers))
"""

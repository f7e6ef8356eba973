"""The tokenizing service: transformers' ids, off the loop, within bounds."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import made_tokenizers as made
import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from prebled.daemon import tokenizing as module
from prebled.daemon.gateway import GenerateInput
from prebled.daemon.token_bounds import longest_token_bytes
from prebled.daemon.tokenizing import Tokenizing
from prebled.errors import InvalidValue, PromptTooLong, RequestError, Saturated, SettingsError
from prebled.messages import ChatMessage
from prebled.model_files import ModelFiles, load_model_files

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = (ChatMessage("system", "Be brief."), ChatMessage("user", "Why is the sky blue? <|im_end|> caf\u00e9 \U0001f600"))


def loaded(tmp_path: Path, tokenizer: Tokenizer, *, max_pending: int = 1024, **fields: Any) -> Tokenizing:
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_str())
    files = ModelFiles(folder=tmp_path, tokenizer_path=path, **{"special_tokens": SPECIAL, **fields})
    return Tokenizing.load(files, max_pending=max_pending)


@pytest.fixture
def tiny(tiny_model: Path) -> Tokenizing:
    return Tokenizing.load(load_model_files(str(tiny_model)))


def ids(data: bytes) -> list[int]:
    return list(memoryview(data).cast("I"))


async def test_all_prompt_forms(tiny: Tokenizing, tiny_model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    assert await tiny.encode(GenerateInput(prompt_tokens=b"\1\0\0\0")) == b"\1\0\0\0"
    for text in ("short", "rather long text, off the loop. " * 40):
        assert ids(await tiny.encode(GenerateInput(prompt=text))) == tokenizer.encode(text).ids
    got = ids(await tiny.encode(GenerateInput(messages=CHAT)))
    turns = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in CHAT)
    assert got == tokenizer.encode(turns + "<|im_start|>assistant\n").ids
    assert (tiny.eos_token_ids, tiny.vocab_size, tiny.has_chat_template) == ((0, 2), 2048, True)


# In a process of its own: an extension that transformers loads may crash the interpreter when that ends.
THEIR_IDS = """
import json, os, sys
from transformers import AutoTokenizer
theirs = AutoTokenizer.from_pretrained(sys.argv[1])
turns, text = json.loads(sys.argv[2])
chat = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
sys.stdout.write(json.dumps([chat, theirs(text)["input_ids"]]))
sys.stdout.flush()
os._exit(0)
"""


async def test_the_ids_are_those_of_transformers(tiny: Tokenizing, tiny_model: Path) -> None:
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    turns = [{"role": turn.role, "content": turn.content} for turn in CHAT]
    text = "Hello <|im_start|>there"
    command = [sys.executable, "-c", THEIR_IDS, str(tiny_model), json.dumps([turns, text])]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=100, check=True)
    expected_chat, expected_text = json.loads(done.stdout)
    assert ids(await tiny.encode_chat(CHAT)) == expected_chat
    assert ids(await tiny.encode_text(text)) == expected_text


async def test_the_decoder_hides_special_and_end_tokens(tmp_path: Path) -> None:
    tokenizing = loaded(tmp_path, made.byte_level(), eos_token_ids=(made.byte_level().token_to_id("H"),))
    text = ids(await tokenizing.encode_text("oh<s> Hi</s>"))
    decoder = tokenizing.decoder()
    assert decoder.push(text) + decoder.finish() == "oh i"


async def test_what_surrounds_a_text_follows_tokenizer_config(tmp_path: Path) -> None:
    tokenizer = made.byte_level_with_bos()
    bos, eos = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    plain = tokenizer.encode("hello", add_special_tokens=False).ids
    for given, expected in (
        ({}, [bos, *plain]),
        ({"add_bos_token": False}, plain),
        ({"add_bos_token": True, "add_eos_token": True}, [bos, *plain, eos]),
        ({"add_eos_token": True}, [*plain, eos]),
    ):
        assert ids(await loaded(tmp_path, tokenizer, **given).encode_text("hello")) == expected


async def test_named_special_tokens_are_recognised_in_text(tmp_path: Path) -> None:
    made_json = json.loads(made.byte_level().to_str())
    made_json["added_tokens"] = [token for token in made_json["added_tokens"] if token["content"] != "</s>"]
    tokenizer = Tokenizer.from_str(json.dumps(made_json))
    eos = tokenizer.token_to_id("</s>")
    assert eos not in tokenizer.encode("end</s>").ids
    assert ids(await loaded(tmp_path, tokenizer).encode_text("end</s>"))[-1] == eos
    absent = loaded(tmp_path, tokenizer, special_tokens={"pad_token": "<never>"})
    assert max(ids(await absent.encode_text("<never>"))) < tokenizer.get_vocab_size()


async def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(made.byte_level().to_str())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    text = "a rather long text with more than four tokens"
    assert ids(await loaded(tmp_path, tokenizer).encode_text(text)) == made.byte_level().encode(text).ids
    assert len(await loaded(tmp_path, tokenizer).encode_text("a")) == 4


async def test_no_chat_template_says_what_to_do(tmp_path: Path) -> None:
    tokenizing = loaded(tmp_path, made.byte_level())
    assert not tokenizing.has_chat_template
    with pytest.raises(RequestError, match="no chat template; use /v1/completions"):
        await tokenizing.encode_chat(CHAT)


def test_a_broken_tokenizer_is_a_setting_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": "1.0"}')
    with pytest.raises(SettingsError, match=r"tokenizer\.json"):
        Tokenizing.load(ModelFiles(folder=tmp_path, tokenizer_path=path, special_tokens={}))


@pytest.mark.parametrize("length", [10, 1000])
async def test_half_a_surrogate_pair_is_refused(tiny: Tokenizing, length: int) -> None:
    with pytest.raises(InvalidValue, match=r"\\ud800"):
        await tiny.encode_text("x" * length + "\ud800")


async def test_an_id_beyond_the_model_is_refused(tmp_path: Path) -> None:
    tokenizer = made.byte_level()
    tokenizing = loaded(tmp_path, tokenizer, vocab_size=400)
    assert tokenizer.get_vocab_size() > 400
    with pytest.raises(InvalidValue, match="does not know"):
        await tokenizing.encode_text(" ".join(made.CORPUS))
    assert await tokenizing.encode_text("a")


async def test_text_that_cannot_fit_is_refused_without_tokenising(
    tiny: Tokenizing, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 100 * longest_token_bytes(tiny._encoder._tokenizer)
    await tiny.encode_text("x" * room, max_tokens=100)
    monkeypatch.setattr(tiny._encoder, "encode", lambda *args: pytest.fail("it was tokenised"))
    with pytest.raises(PromptTooLong, match=str(room + 1)):
        await tiny.encode_text("x" * (room + 1), max_tokens=100)
    with pytest.raises(PromptTooLong):
        await tiny.encode_chat([ChatMessage("user", "x" * room)], max_tokens=100)


def test_the_bound_on_text_is_given_only_where_it_is_sound() -> None:
    plain = longest_token_bytes(made.byte_level())
    longest = max(made.byte_level().get_vocab(), key=lambda token: len(token.encode()))
    assert plain == len(longest.encode())
    composing = Tokenizer.from_str(made.byte_level().to_str())
    composing.normalizer = normalizers.NFC()
    assert longest_token_bytes(composing) >= 3 * plain
    assert longest_token_bytes(made.byte_fallback()) > 0
    dropping = Tokenizer.from_str(made.byte_level().to_str())
    dropping.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), made.byte_level().pre_tokenizer]
    )
    shortening = Tokenizer.from_str(made.byte_level().to_str())
    shortening.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
    for tokenizer in (dropping, shortening, made.awkward(), made.metaspace(), made.word_piece()):
        assert longest_token_bytes(tokenizer) == 0


async def test_the_loop_goes_on_while_long_text_is_tokenised(tiny: Tokenizing) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 20_000
    job = asyncio.ensure_future(tiny.encode_text(text))
    turns = 0
    while not job.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 100
    assert len(job.result()) > 200_000


async def test_long_texts_leave_a_thread_to_the_others(tiny: Tokenizing, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    original = tiny._encoder.encode

    def slow(text: str, special: bool) -> bytes:
        if len(text) >= module.LONG_CHARS:
            gate.wait(20)
        return original(text, special)

    monkeypatch.setattr(tiny._encoder, "encode", slow)
    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(tiny.encode_text(f"{number} " * module.LONG_CHARS))
        await asyncio.sleep(0)
        assert await asyncio.wait_for(tiny.encode_text("in between " * 50), 5)
        gate.set()


async def test_past_the_bound_of_waiting_texts_it_is_saturated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizing = loaded(tmp_path, made.byte_level(), max_pending=3)
    gate = threading.Event()
    monkeypatch.setattr(tokenizing._encoder, "encode", lambda text, special: gate.wait(20) and b"")
    jobs = [asyncio.ensure_future(tokenizing.encode_text("long " * 100)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Saturated) as caught:
        await tokenizing.encode_text("long " * 100)
    assert caught.value.retry_after_s
    gate.set()
    await asyncio.gather(*jobs)
    assert await tokenizing.encode_text("long " * 100) == b""
    cancelled = asyncio.ensure_future(tokenizing.encode_text("long " * 100))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert tokenizing._pending == 0


@pytest.fixture(autouse=True)
def _close_threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stops the threads of every service a test makes."""
    made_services: list[Tokenizing] = []
    original = Tokenizing.__init__

    def remember(self: Tokenizing, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        made_services.append(self)

    monkeypatch.setattr(Tokenizing, "__init__", remember)
    yield
    for service in made_services:
        service.close()

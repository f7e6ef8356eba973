"""A tiny Llama with random weights and a byte-level BPE tokenizer, in the layout of Hugging Face.

For trying and testing everything without a download: it loads wherever a real model does and answers at once, in
fluent nonsense. The same arguments always give the same model, and its greedy answers depend on the whole prompt. It
needs neither torch nor transformers.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from prebled.errors import SettingsError
from prebled.tiny_corpus import training_texts

VOCAB_SIZE = 2048
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)  # token ids 0, 1, 2
EOS_TOKEN_IDS = (0, 2)

_LAYERS, _HIDDEN, _INTERMEDIATE, _HEADS, _KV_HEADS = 2, 128, 256, 4, 2
_HEAD_DIM = _HIDDEN // _HEADS
_MARK = "prebled_tiny_model"  # key in config.json by which a tiny model is known

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{TURN_START}" + "{{ message['role'] }}\n{{ message['content'] }}" + f"{TURN_END}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + f"{TURN_START}assistant\n" + "{% endif %}"
)

Weights = dict[str, NDArray[np.float32]]


def write_tiny_model(folder: Path, *, seed: int = 0, context_tokens: int = 16384) -> None:
    """Write the model's files into `folder`, which is made if it is missing; a tiny model already there is replaced.

    Raises SettingsError if the folder holds anything else, or if `context_tokens` is below 1.
    """
    if context_tokens < 1:
        raise SettingsError(f"context_tokens must be at least 1, not {context_tokens}")
    _check_replaceable(folder)
    files = {
        "config.json": _json(_config(context_tokens, seed)),
        "generation_config.json": _json({"bos_token_id": 0, "eos_token_id": list(EOS_TOKEN_IDS), "pad_token_id": 0}),
        "model.safetensors": save(_weights(seed), metadata={"format": "pt"}),
        "tokenizer.json": _tokenizer().to_str(pretty=False).encode(),
        "tokenizer_config.json": _json(_tokenizer_config(context_tokens)),
        "special_tokens_map.json": _json(_special_tokens()),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        _replace_file(folder / name, content)


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder} is not a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        is_tiny = _MARK in json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, TypeError):
        is_tiny = False
    if not is_tiny:
        raise SettingsError(f"{folder} is not empty and holds no tiny model: nothing was written")


def _replace_file(path: Path, content: bytes) -> None:
    """Never in place: an engine may have the old weights mapped into its memory."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.chmod(name, 0o644)
    os.replace(name, path)


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _config(context_tokens: int, seed: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": _HIDDEN,
        "intermediate_size": _INTERMEDIATE,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_DIM,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": context_tokens,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": list(EOS_TOKEN_IDS),
        "pad_token_id": 0,
        _MARK: {"seed": seed},
    }


def _special_tokens() -> dict[str, str]:
    return {"bos_token": END_OF_TEXT, "eos_token": TURN_END, "pad_token": END_OF_TEXT}


def _tokenizer_config(context_tokens: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_tokens,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "chat_template": _CHAT_TEMPLATE,
        **_special_tokens(),
    }


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    # Words, numbers by three digits, and runs of punctuation with a leading space: JSON's `": "` becomes few tokens.
    split = Regex(r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(  # type: ignore[no-untyped-call]
        vocab_size=VOCAB_SIZE,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    return tokenizer


def _weights(seed: int) -> Weights:
    """Scales found by trial: attention sharp enough that an answer hangs on the whole prompt, and logits spread enough
    that rounding differences between batch sizes do not change the greedy choice."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> NDArray[np.float32]:
        values: NDArray[np.float64] = rng.standard_normal((rows, columns)) * gain / np.sqrt(columns)
        return values.astype(np.float32)

    ones = np.ones(_HIDDEN, dtype=np.float32)
    weights: Weights = {
        "model.embed_tokens.weight": rng.standard_normal((VOCAB_SIZE, _HIDDEN)).astype(np.float32),
        "model.norm.weight": ones,
        "lm_head.weight": matrix(VOCAB_SIZE, _HIDDEN, gain=3.0),
    }
    for layer in range(_LAYERS):
        name = f"model.layers.{layer}"
        weights |= {
            f"{name}.input_layernorm.weight": ones,
            f"{name}.post_attention_layernorm.weight": ones,
            f"{name}.self_attn.q_proj.weight": matrix(_HEADS * _HEAD_DIM, _HIDDEN, gain=1.5),
            f"{name}.self_attn.k_proj.weight": matrix(_KV_HEADS * _HEAD_DIM, _HIDDEN, gain=1.5),
            f"{name}.self_attn.v_proj.weight": matrix(_KV_HEADS * _HEAD_DIM, _HIDDEN, gain=2.0),
            f"{name}.self_attn.o_proj.weight": matrix(_HIDDEN, _HEADS * _HEAD_DIM, gain=2.0),
            f"{name}.mlp.gate_proj.weight": matrix(_INTERMEDIATE, _HIDDEN),
            f"{name}.mlp.up_proj.weight": matrix(_INTERMEDIATE, _HIDDEN),
            f"{name}.mlp.down_proj.weight": matrix(_HIDDEN, _INTERMEDIATE),
        }
    return weights

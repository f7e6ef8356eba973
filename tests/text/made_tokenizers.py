"""Small tokenizers of every kind that matters, trained in a fraction of a second and kept for the whole run."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "A scheduler that knows every prefix sends a request where its prefix is cached.",
    "user: hello there, how are you? assistant: fine, thanks! What about you, user?",
    'def main() -> None:\n    print("hello", {"a": [1, 2, 3]})\n\n\nif __name__ == "__main__":\n    main()\n',
    "caf\u00e9 na\u00efve \u00fcber stra\u00dfe \u4f60\u597d\u4e16\u754c \u3053\u3093 \U0001f600\U0001f680 \u20ac 5",
] * 4
SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


@cache
def byte_level() -> Tokenizer:
    """GPT-2's, Llama 3's and Qwen's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(tokenizer, trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIALS, initial_alphabet=alphabet))
    return tokenizer


@cache
def byte_level_with_bos() -> Tokenizer:
    """The same with a beginning-of-sequence token before every text."""
    tokenizer = Tokenizer.from_str(byte_level().to_str())
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return tokenizer


@cache
def byte_fallback() -> Tokenizer:
    """Llama 2's kind: a mark for spaces, one before the text, bytes for unknown characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    specials = ["<unk>", *SPECIALS]
    _train(tokenizer, trainers.BpeTrainer(vocab_size=400, special_tokens=specials, limit_alphabet=60))
    made = json.loads(tokenizer.to_str())
    vocab = made["model"]["vocab"]
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    made["model"] |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    tokenizer = Tokenizer.from_str(json.dumps(made))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


@cache
def metaspace(scheme: str = "first") -> Tokenizer:
    """Unigram with marks for spaces, as T5 and newer Llama conversions have it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    _train(tokenizer, trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>", *SPECIALS], unk_token="<unk>"))
    return tokenizer


@cache
def word_piece() -> Tokenizer:
    """BERT's kind; its decoder joins words by rules."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    _train(tokenizer, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["<unk>", *SPECIALS]))
    return tokenizer


@cache
def awkward() -> Tokenizer:
    """Byte-level, with added tokens of every awkward sort among the ordinary ones."""
    tokenizer = Tokenizer.from_str(byte_level().to_str())
    tokenizer.add_tokens(
        [
            AddedToken("<left>", lstrip=True, normalized=False),
            AddedToken("<right>", rstrip=True, normalized=False),
            AddedToken("<word>", single_word=True, normalized=False),
            AddedToken("<Norm>", normalized=True),
            AddedToken("<|im_end|><s>", normalized=False),
        ]
    )
    return tokenizer


def _train(tokenizer: Tokenizer, trainer: trainers.Trainer) -> None:
    trainer.show_progress = False
    tokenizer.train_from_iterator(CORPUS, trainer)

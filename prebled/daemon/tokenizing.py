"""The daemon's tokenizer: prompts to token ids, off the event loop, and ids back to text.

The rule: the ids are those that transformers gives, and the loop never waits for long text. Texts of up to
`INLINE_CHARS` are tokenised where they stand, since that takes less time than a hop to a thread and back (20
microseconds per hundred characters against 30 to 140 for the hop); longer ones go to a small pool of threads, and at
least one thread is always left to those that are not very long.
Not known here: who asks, and where the ids go.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tokenizers import AddedToken, Tokenizer, processors

from prebled.daemon.chat_template import ChatTemplate
from prebled.daemon.detokenizing import Detokenizer
from prebled.daemon.gateway import GenerateInput
from prebled.daemon.segments import SegmentedEncoder
from prebled.daemon.text import TokenDecoder
from prebled.daemon.token_bounds import longest_token_bytes
from prebled.errors import InvalidValue, PromptTooLong, RequestError, Saturated, SettingsError
from prebled.messages import ChatMessage
from prebled.model_files import ModelFiles

INLINE_CHARS = 256
LONG_CHARS = 64 * 1024
"""Text from here on is very long: it takes tens of milliseconds of a thread."""

CACHE_BYTES = 64 * 1024 * 1024
_MAX_THREADS = 4

# All parallelism is our threads', one text each; the library's own pool would only add a hop to each call.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Tokenizing:
    """One model's tokenizer, chat template and detokenizer. Used from one event loop; `close` it at the end."""

    def __init__(self, tokenizer: Tokenizer, files: ModelFiles, *, max_pending: int, cache_bytes: int) -> None:
        self._encoder = SegmentedEncoder(tokenizer, cache_bytes)
        vocab = tokenizer.get_vocab()
        eos = {vocab[text] for text in [files.special_tokens.get("eos_token")] if text in vocab}
        self.eos_token_ids: tuple[int, ...] = tuple(sorted(eos.union(files.eos_token_ids)))
        self.vocab_size: int = files.vocab_size or max(vocab.values()) + 1
        self._detokenizer = Detokenizer(tokenizer, self.eos_token_ids)
        self._longest_token_bytes = longest_token_bytes(tokenizer)
        self._may_exceed_vocab = max(vocab.values()) >= self.vocab_size
        self._template = ChatTemplate(files.chat_template, files.special_tokens) if files.chat_template else None
        threads = min(max(os.cpu_count() or 1, 2), _MAX_THREADS)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")
        self._long_turns = asyncio.Semaphore(threads - 1)
        self._pending = 0
        self._max_pending = max_pending

    @classmethod
    def load(cls, files: ModelFiles, *, max_pending: int = 1024, cache_bytes: int = CACHE_BYTES) -> Tokenizing:
        """Read the tokenizer (blocks for up to a second with a large vocabulary). `max_pending`: texts waiting for a
        thread or in one, past which `Saturated` is raised. Raises SettingsError."""
        try:
            tokenizer = Tokenizer.from_file(str(files.tokenizer_path))
        except Exception as error:  # the library raises plain Exception for whatever is wrong with the file
            raise SettingsError(f"{files.tokenizer_path}: {error}") from error
        _adapt(tokenizer, files)
        return cls(tokenizer, files, max_pending=max_pending, cache_bytes=cache_bytes)

    @property
    def has_chat_template(self) -> bool:
        """Whether chats can be served."""
        return self._template is not None

    def decoder(self) -> TokenDecoder:
        """A fresh incremental decoder for one answer."""
        return self._detokenizer.stream()

    def close(self) -> None:
        """Stop the threads; what they are at is finished in the background."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def encode(self, request: GenerateInput, *, max_tokens: int = 0) -> bytes:
        """The ids of a request's prompt, uint32 LE, whatever form it has. `max_tokens`: the longest prompt that could
        be served, if known (0: not). Raises RequestError, PromptTooLong or Saturated."""
        if request.prompt_tokens is not None:
            return request.prompt_tokens
        if request.messages is not None:
            return await self.encode_chat(request.messages, max_tokens=max_tokens)
        return await self.encode_text(request.prompt or "", max_tokens=max_tokens)

    async def encode_text(self, text: str, *, add_special_tokens: bool = True, max_tokens: int = 0) -> bytes:
        """The ids of a text, by default with what the tokenizer puts around it (beginning of sequence)."""
        return await self._run(len(text), lambda: self._ids(text, "prompt", add_special_tokens, max_tokens))

    async def encode_chat(self, messages: Sequence[ChatMessage], *, max_tokens: int = 0) -> bytes:
        """The ids of a chat, up to where the assistant's next turn begins. The template says what surrounds it."""
        template = self._template
        if template is None:
            raise RequestError("the model has no chat template; use /v1/completions", param="messages")
        chars = sum(len(message.content) for message in messages)
        return await self._run(chars, lambda: self._ids(template.render(messages), "messages", False, max_tokens))

    def _ids(self, text: str, param: str, add_special_tokens: bool, max_tokens: int) -> bytes:
        room = max_tokens * self._longest_token_bytes
        if room and len(text) > room:  # it has at least as many bytes as characters
            raise PromptTooLong(f"{param}: {len(text)} characters are more than {max_tokens} tokens", param=param)
        try:
            text.isascii() or text.encode()
        except UnicodeEncodeError as error:
            message = f"{param}: half a surrogate pair, {text[error.start]!a}, is no character"
            raise InvalidValue(message, param=param) from error
        ids = self._encoder.encode(text, add_special_tokens)
        if self._may_exceed_vocab and ids and (worst := max(memoryview(ids).cast("I"))) >= self.vocab_size:
            raise InvalidValue(f"{param}: the text has token {worst}, which the model does not know", param=param)
        return ids

    async def _run(self, chars: int, job: Callable[[], bytes]) -> bytes:
        if chars <= INLINE_CHARS:
            return job()
        if self._pending >= self._max_pending:
            raise Saturated(f"{self._pending} prompts wait to be tokenised", retry_after_s=1.0)
        self._pending += 1
        try:
            if chars < LONG_CHARS:
                return await self._in_thread(job)
            async with self._long_turns:
                return await self._in_thread(job)
        finally:
            self._pending -= 1

    async def _in_thread(self, job: Callable[[], bytes]) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._executor, job)


def _adapt(tokenizer: Tokenizer, files: ModelFiles) -> None:
    """What transformers does to a tokenizer on loading it: no truncation or padding, named special tokens recognised in
    text, and `add_bos_token`/`add_eos_token`, where given, in place of tokenizer.json's own post-processor."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_special_tokens(_missing(tokenizer, files.special_tokens.values(), known))
    if files.add_bos_token is None and files.add_eos_token is None:
        return
    before = _known(tokenizer, files.special_tokens.get("bos_token")) if files.add_bos_token else []
    after = _known(tokenizer, files.special_tokens.get("eos_token")) if files.add_eos_token else []
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        special_tokens=[(text, tokenizer.token_to_id(text)) for text in dict.fromkeys(before + after)],
    )


def _known(tokenizer: Tokenizer, text: str | None) -> list[str]:
    return [text] if text is not None and tokenizer.token_to_id(text) is not None else []


def _missing(tokenizer: Tokenizer, texts: Iterable[str], known: set[str]) -> list[AddedToken]:
    """Special tokens that are in the vocabulary, but that the tokenizer would not find in a text as one token. Those
    outside the vocabulary are left out: no model has an embedding for them."""
    wanted = [text for text in dict.fromkeys(texts) if text not in known and tokenizer.token_to_id(text) is not None]
    return [AddedToken(text, special=True, normalized=False) for text in wanted]

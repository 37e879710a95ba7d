"""Text to ids and back, by the tokenizer that came with the checkpoint.

Rules:
- A tokenizer is ``tokenizer.json``: data that the package ``tokenizers`` reads. No class that a checkpoint names is
  looked up, nothing is unpickled, nothing is fetched.
- A conversation becomes ids by the checkpoint's own template. What its messages say is text: a control token in there
  is not one.
"""

from __future__ import annotations

import inspect
import threading
from typing import TYPE_CHECKING, Any

from agent.architectures.huggingface_config import PURPOSE, library
from agent.architectures.optional import require
from agent.serving.errors import BadRequestError
from agent.serving.generation.template import TemplateLimitError, bounded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from agent.serving.generation.wishes import Messages

PRIMED_TOKENS = 8
"""Of a prompt, that tell a decoder whether the first new word has a space before it."""
CHARACTERS_PER_TOKEN = 64
"""More than any text has on average: what is longer for its context is refused before it is taken apart."""


class Codec:
    """One checkpoint's tokenizer and template.

    Args:
        tokenizer: path of ``tokenizer.json``.
        template: the chat template, None if there is none.
        special_tokens: ``bos_token`` and the like, for the template.

    Raises:
        ValueError: the file is no tokenizer.
    """

    def __init__(self, tokenizer: Path, template: str | None, special_tokens: Mapping[str, str]) -> None:
        self._package = require("tokenizers", "transformers", PURPOSE)
        try:
            self._tokenizer = self._package.Tokenizer.from_file(str(tokenizer))
        except Exception as error:
            raise ValueError(f"{tokenizer.name} is no tokenizer: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        known = {
            name: token for name, token in special_tokens.items() if self._tokenizer.token_to_id(token) is not None
        }
        # It is changed while it works, so only one conversation at a time is taken apart.
        self._lock = threading.Lock()
        self._chat: Any = template and library().PreTrainedTokenizerFast(
            tokenizer_object=self._tokenizer, chat_template=template, **known
        )

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, context_tokens: int) -> list[int]:
        """Return a text's ids, with what the tokenizer puts around texts; raises ``BadRequestError``."""
        _expect_length(len(text), context_tokens)
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def chat(self, messages: Messages, context_tokens: int) -> list[int]:
        """Return a conversation's ids up to where the answer begins.

        Raises:
            BadRequestError: the model has no template, or that refuses the messages.
        """
        if not self._chat:
            raise BadRequestError("the model has no chat template: ask it to continue a text, with /v1/completions")
        _expect_length(sum(len(message["content"]) for message in messages), context_tokens)
        with self._lock:
            try:
                ids: list[int] = bounded(lambda: self._apply(messages))
            except TemplateLimitError as error:
                raise BadRequestError(str(error)) from None
            except Exception as error:
                # A template may raise anything, on purpose as well: roles that do not alternate, for one.
                reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
                raise BadRequestError(f"the model's chat template refuses the messages: {reason}") from error
        return ids

    def stream(self, prompt: Sequence[int]) -> Text:
        """Return what turns the tokens behind ``prompt`` into text."""
        return Text(self._package.decoders.DecodeStream, self._tokenizer, prompt[-PRIMED_TOKENS:])

    def _apply(self, messages: Messages) -> Any:
        apply = self._chat.apply_chat_template
        sanitized = {"sanitize_control_tokens": True}
        if "sanitize_control_tokens" not in inspect.signature(apply).parameters:
            sanitized = {}  # an older release of the library has no such thing
            self._refuse_control_tokens(messages)
        return apply(messages, add_generation_prompt=True, tokenize=True, return_dict=False, **sanitized)

    def _refuse_control_tokens(self, messages: Messages) -> None:
        for message in messages:
            for token in self._chat.all_special_tokens:
                if token in message["content"]:
                    raise BadRequestError(f"a message has the control token {token!r} in it")


class Text:
    """The text of one sequence of tokens; characters come out whole."""

    def __init__(self, kind: Any, tokenizer: Any, before: Sequence[int]) -> None:
        self._kind = kind
        self._tokenizer = tokenizer
        self._stream = kind(ids=list(before), skip_special_tokens=True)

    def push(self, token: int) -> str:
        """Return the text that is certain with this token; it may be empty."""
        try:
            return self._stream.step(self._tokenizer, token) or ""
        except Exception:  # noqa: BLE001 - it has no name of its own
            # A token that changes how those before it read; beginning anew is all that can be done for a text that
            # has been shown (tokenizers' DecodeStream: "Invalid prefix encountered").
            self._stream = self._kind(skip_special_tokens=True)
            return self._stream.step(self._tokenizer, token) or ""


def _expect_length(characters: int, context_tokens: int) -> None:
    most = context_tokens * CHARACTERS_PER_TOKEN
    if characters > most:
        raise BadRequestError(
            f"a text of {characters} characters does not fit a context of {context_tokens} tokens: at most {most}"
        )

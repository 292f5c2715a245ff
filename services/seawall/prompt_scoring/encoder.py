"""Turns text into vectors with a model pack of task "text-embedding". The one module here that runs a model."""

from __future__ import annotations

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from seawall.core.errors import Fatal
from seawall.runtime.model_card import MODEL_FILE, TextEmbeddingCard
from seawall.runtime.model_pack import ModelPack

Vectors = NDArray[np.float32]


class TooManyTokens(ValueError):
    """The text has more windows than the caller allows."""


class Encoder:
    """A sentence encoder. Safe for threads; each call runs on the caller's thread alone.

    One text at a time: the activations of an int8 model are quantised over the whole input tensor, so a text's vector
    would depend on the batch's other members.
    """

    def __init__(self, pack: ModelPack, window_tokens: int = 128) -> None:
        """Args:
            pack: a verified pack; its inputs are any of input_ids, attention_mask and token_type_ids, (batch, tokens).
            window_tokens: longer texts are cut into windows of so many tokens, special ones included; the pack's own
                limit wins if it is lower.

        Raises:
            Fatal: ``WRONG_MODEL_TASK``; ``BAD_MODEL`` when the model cannot be run or does not reproduce its card.
        """
        card = pack.card
        if not isinstance(card, TextEmbeddingCard):
            raise Fatal("WRONG_MODEL_TASK", f"{pack.name}: task is {card.task}, this room runs text-embedding")
        self._name = pack.name
        self._card = card
        self._tokenizer = open_tokenizer(pack, card.input.tokenizer, min(window_tokens, card.input.max_tokens))
        self._session = open_session(pack)
        self._inputs = [value.name for value in self._session.get_inputs()]
        unknown = sorted(set(self._inputs) - {"input_ids", "attention_mask", "token_type_ids"})
        if unknown:
            raise Fatal("BAD_MODEL", f"{pack.name}: inputs {', '.join(unknown)} are unknown: export a plain encoder")
        self._verify()

    @property
    def dimensions(self) -> int:
        return self._card.output.dimensions

    def embed(self, text: str, max_windows: int = 1) -> Vectors:
        """One unit vector a window of ``text``: (windows, dimensions) float32, in order.

        Args:
            text: any; an empty one has one window.
            max_windows: how many windows the text may have.

        Raises:
            TooManyTokens: it has more.
        """
        encoding = self._tokenizer.encode(text)
        windows: list[Encoding] = [encoding, *encoding.overflowing]
        if len(windows) > max_windows:
            raise TooManyTokens(len(windows))
        if len(windows) == 1:
            return self._run(encoding)
        return np.concatenate([self._run(window) for window in windows])

    def embed_start(self, text: str) -> Vectors:
        """The first window of ``text`` alone: (1, dimensions)."""
        return self._run(self._tokenizer.encode(text))

    def _run(self, encoding: Encoding) -> Vectors:
        feed = {"input_ids": np.array([encoding.ids], dtype=np.int64)}
        if "attention_mask" in self._inputs:
            feed["attention_mask"] = np.ones_like(feed["input_ids"])
        if "token_type_ids" in self._inputs:
            feed["token_type_ids"] = np.zeros_like(feed["input_ids"])
        output: Vectors = self._session.run(None, feed)[0]
        settings = self._card.output
        if not settings.pooled_in_graph:
            pool = {"mean": lambda x: x.mean(axis=1), "cls": lambda x: x[:, 0], "max": lambda x: x.max(axis=1)}
            output = pool[settings.pooling](output)
        return output if settings.normalised else output / np.linalg.norm(output, axis=1, keepdims=True)

    def _verify(self) -> None:
        """The shape of what comes out, and the card's examples."""
        shape = self._trial("a").shape
        if shape != (1, self.dimensions):
            raise Fatal("BAD_MODEL", f"{self._name}: the output is {shape}, the card says (1, {self.dimensions})")
        for number, example in enumerate(self._card.examples, 1):
            one, other = (self._trial(text)[0] for text in example.texts)
            cosine = float(one @ other)
            if not abs(cosine - example.cosine) <= example.tolerance:
                detail = f"{self._name}: example {number} has cosine {cosine:.3f}, the card says {example.cosine:.3f}"
                raise Fatal("BAD_MODEL", f"{detail}: install the pack again, or another release of onnxruntime")

    def _trial(self, text: str) -> Vectors:
        try:
            return self.embed_start(text)
        except Exception as error:
            # onnxruntime raises a class of its own for every kind of fault.
            detail = f"{self._name}: {MODEL_FILE} cannot be run ({type(error).__name__}): install the pack again"
            raise Fatal("BAD_MODEL", detail) from error


def open_tokenizer(pack: ModelPack, file: str, window_tokens: int) -> Tokenizer:
    """The pack's tokenizer, which cuts texts into windows. Raises Fatal("BAD_MODEL")."""
    try:
        tokenizer = Tokenizer.from_buffer(pack.read(file))
    except Fatal:
        raise
    except Exception as error:
        # tokenizers raises plain Exception.
        detail = f"{pack.name}: {file} is not a tokenizer of this library: export it again"
        raise Fatal("BAD_MODEL", detail) from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(window_tokens)
    return tokenizer


def open_session(pack: ModelPack) -> onnxruntime.InferenceSession:
    """The pack's model, run on the caller's thread alone. Raises Fatal("BAD_MODEL")."""
    options = onnxruntime.SessionOptions()
    # One thread an item: the room's own workers are the parallelism, and spinning threads would starve them.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # The arena keeps the peak of the longest text for ever.
    options.enable_cpu_mem_arena = True
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(pack.read(MODEL_FILE), options, providers=["CPUExecutionProvider"])
    except Fatal:
        raise
    except Exception as error:
        kind = type(error).__name__
        detail = f"{pack.name}: {MODEL_FILE} cannot be loaded ({kind}): install the pack again"
        raise Fatal("BAD_MODEL", detail) from error

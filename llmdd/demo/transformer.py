"""A small decoder-only transformer in NumPy: RoPE, grouped-query attention, RMSNorm, SwiGLU and a KV cache.

It is there to produce *real* KV caches, not sense: its weights are drawn at random from a fixed seed. One call of
:meth:`Transformer.forward` handles one sequence, a whole prompt or a single token of it, so that what is computed for
a sequence depends on that sequence alone. Floating-point sums depend on the order of their terms, and BLAS chooses that
order by the shapes it is given. No shape here depends on which other sequences run beside, and the demo gives BLAS
one thread; so two processes that serve the same prompt in different company agree to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

RMS_NORM_EPSILON = np.float32(1e-5)


@dataclass(frozen=True)
class TransformerShape:
    """The dimensions of a transformer. The default has 3.5 million parameters."""

    layers: int = 6
    model_dim: int = 256
    heads: int = 8
    kv_heads: int = 2
    feed_forward_dim: int = 512
    vocabulary: int = 256
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        if self.model_dim % self.heads or self.head_dim % 2:
            raise ValueError(f"model_dim {self.model_dim} does not divide into {self.heads} heads of an even size")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key-value heads evenly")

    @property
    def head_dim(self) -> int:
        return self.model_dim // self.heads

    @property
    def kv_tensors(self) -> int:
        """Tensors in a KV cache: keys and values of every layer."""
        return 2 * self.layers

    def kv_cache_shape(self, batch_size: int, context: int) -> tuple[int, int, int, int]:
        """The shape of each tensor in a KV cache of ``batch_size`` sequences of up to ``context`` tokens."""
        return batch_size, self.kv_heads, context, self.head_dim


class SequenceCache(NamedTuple):
    """The keys and values of one sequence, one array ``[kv_heads, context, head_dim]`` for each layer."""

    keys: list[Array]
    values: list[Array]

    @classmethod
    def of_slot(cls, tensors: Sequence[NDArray[Any]], slot: int) -> SequenceCache:
        """The part of a KV cache that belongs to batch slot ``slot``, as views.

        The tensors of layer L are number 2L (keys) and 2L + 1 (values).
        """
        return cls([tensor[slot] for tensor in tensors[0::2]], [tensor[slot] for tensor in tensors[1::2]])


class Layer(NamedTuple):
    """The weights of one layer; each is applied from the right, ``x @ weight``."""

    attention_norm: Array
    query: Array
    key: Array
    value: Array
    output: Array
    feed_forward_norm: Array
    gate: Array
    up: Array
    down: Array


class Transformer:
    """A transformer with weights drawn from ``seed``, for sequences of up to ``context`` tokens.

    Parameters
    ----------
    shape
        Its dimensions.
    seed
        Equal seeds give equal weights in every process.
    context
        The greatest number of tokens in a sequence, prompt and generated ones together.
    """

    def __init__(self, shape: TransformerShape, seed: int, context: int) -> None:
        self.shape = shape
        self.context = context
        random = np.random.default_rng(seed)
        kv_dim = shape.kv_heads * shape.head_dim

        def weight(inputs: int, outputs: int, gain: float = 1.0) -> Array:
            drawn = random.standard_normal((inputs, outputs), dtype=np.float32)
            return drawn * np.float32(gain / np.sqrt(inputs))

        def norm() -> Array:
            return np.ones(shape.model_dim, dtype=np.float32)

        self.embedding: Array = random.standard_normal((shape.vocabulary, shape.model_dim), dtype=np.float32)
        self.layers = [
            Layer(
                attention_norm=norm(),
                # A larger gain makes attention pick few positions out of many, as a trained model's does. With an even
                # spread every position of a long prompt would hardly matter, and a wrong KV cache could go unnoticed.
                query=weight(shape.model_dim, shape.model_dim, gain=2.0),
                key=weight(shape.model_dim, kv_dim, gain=2.0),
                value=weight(shape.model_dim, kv_dim),
                output=weight(shape.model_dim, shape.model_dim, gain=2.0),
                feed_forward_norm=norm(),
                gate=weight(shape.model_dim, shape.feed_forward_dim),
                up=weight(shape.model_dim, shape.feed_forward_dim),
                down=weight(shape.feed_forward_dim, shape.model_dim),
            )
            for _ in range(shape.layers)
        ]
        self.final_norm = norm()
        self.unembedding = weight(shape.model_dim, shape.vocabulary)
        self._rotation_cos, self._rotation_sin = rotation_tables(context, shape.head_dim, shape.rope_base)

    @property
    def parameters(self) -> int:
        """How many numbers the weights consist of."""
        return sum(weights.size for weights in self._weights())

    def _weights(self) -> Iterator[Array]:
        yield self.embedding
        for layer in self.layers:
            yield from layer
        yield self.final_norm
        yield self.unembedding

    def empty_cache(self) -> SequenceCache:
        """Room for the keys and values of one sequence, outside any pool."""
        shape = self.shape.kv_cache_shape(1, self.context)
        return SequenceCache.of_slot([np.zeros(shape, dtype=np.float32) for _ in range(self.shape.kv_tensors)], 0)

    def forward(
        self,
        tokens: Sequence[int],
        position: int,
        cache: SequenceCache,
        layer_written: Callable[[int], None] = lambda layer: None,
    ) -> Array:
        """Extend a sequence by ``tokens`` and return the logits of the token that follows them.

        Parameters
        ----------
        tokens
            The tokens at ``position``, ``position + 1`` and so on: a whole prompt, or the token generated last.
        position
            How many tokens of the sequence stand in ``cache`` already.
        cache
            The sequence's keys and values. Those of ``tokens`` are written into it.
        layer_written
            Called with the number of each layer as soon as its keys and values stand in ``cache``.

        Returns
        -------
        ndarray of shape ``[vocabulary]``
        """
        end = position + len(tokens)
        if not tokens:
            raise ValueError("a sequence can only be extended by at least one token")
        if end > self.context:
            raise ValueError(f"the sequence would have {end} tokens; there is room for {self.context}")
        hidden = self.embedding[np.asarray(tokens)]
        for number, (layer, keys, values) in enumerate(zip(self.layers, cache.keys, cache.values, strict=True)):
            hidden = hidden + self._attention(layer, rms_norm(hidden, layer.attention_norm), position, keys, values)
            layer_written(number)
            hidden = hidden + feed_forward(layer, rms_norm(hidden, layer.feed_forward_norm))
        logits: Array = rms_norm(hidden[-1], self.final_norm) @ self.unembedding
        return logits

    def _attention(self, layer: Layer, hidden: Array, position: int, keys: Array, values: Array) -> Array:
        """Grouped-query attention: every key-value head serves ``heads / kv_heads`` query heads."""
        shape = self.shape
        count, end = len(hidden), position + len(hidden)
        group = shape.heads // shape.kv_heads
        cos, sin = self._rotation_cos[position:end, None], self._rotation_sin[position:end, None]

        query = rotate((hidden @ layer.query).reshape(count, shape.heads, shape.head_dim), cos, sin)
        key = rotate((hidden @ layer.key).reshape(count, shape.kv_heads, shape.head_dim), cos, sin)
        value = (hidden @ layer.value).reshape(count, shape.kv_heads, shape.head_dim)
        keys[:, position:end] = key.swapaxes(0, 1)
        values[:, position:end] = value.swapaxes(0, 1)

        # [kv_heads, group * count, head_dim]: the query heads that share a key-value head share one matrix product.
        query = query.reshape(count, shape.kv_heads, group, shape.head_dim).transpose(1, 2, 0, 3)
        query = query.reshape(shape.kv_heads, group * count, shape.head_dim)
        scores = query @ keys[:, :end].swapaxes(1, 2) * np.float32(1 / np.sqrt(shape.head_dim))
        scores = scores.reshape(shape.kv_heads, group, count, end)
        later = np.arange(end) > np.arange(position, end)[:, None]
        weights = softmax(np.where(later, np.float32(-np.inf), scores))
        mixed: Array = np.matmul(weights.reshape(shape.kv_heads, group * count, end), values[:, :end])
        mixed = mixed.reshape(shape.kv_heads, group, count, shape.head_dim).transpose(2, 0, 1, 3)
        attended: Array = mixed.reshape(count, shape.model_dim) @ layer.output
        return attended


def generate(transformer: Transformer, prompt: bytes, count: int) -> Iterator[int]:
    """The ``count`` tokens that greedily continue ``prompt``, one by one, all computed here."""
    cache = transformer.empty_cache()
    length = len(prompt)
    token = greedy(transformer.forward(list(prompt), 0, cache))
    yield token
    for _ in range(count - 1):
        token = greedy(transformer.forward([token], length, cache))
        length += 1
        yield token


def greedy(logits: Array) -> int:
    """The most likely token; the smallest of several equally likely ones."""
    return int(np.argmax(logits))


def feed_forward(layer: Layer, hidden: Array) -> Array:
    """SwiGLU: one projection, passed through SiLU, gates another."""
    gate = hidden @ layer.gate
    mixed: Array = (gate / (np.float32(1) + np.exp(-gate)) * (hidden @ layer.up)) @ layer.down
    return mixed


def rms_norm(hidden: Array, weight: Array) -> Array:
    """Scale each vector to a root mean square of one."""
    mean_square = np.mean(hidden * hidden, axis=-1, keepdims=True, dtype=np.float32)
    normal: Array = np.divide(hidden, np.sqrt(mean_square + RMS_NORM_EPSILON)) * weight
    return normal


def softmax(scores: Array) -> Array:
    """Weights that sum to one along the last axis."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights: Array = powers / powers.sum(axis=-1, keepdims=True)
    return weights


def rotation_tables(context: int, head_dim: int, base: float) -> tuple[Array, Array]:
    """Cosine and sine of the angle by which RoPE turns each pair of a head, ``[context, head_dim / 2]``."""
    frequency = base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    angle = np.outer(np.arange(context, dtype=np.float64), frequency)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotate(heads: Array, cos: Array, sin: Array) -> Array:
    """Turn the pairs ``(i, i + head_dim / 2)`` of every head by the angle of their position (RoPE)."""
    first, second = np.split(heads, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)

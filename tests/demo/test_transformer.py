"""The demo's transformer, against definitions written out plainly, and its promise that company does not matter."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from llmdd.demo.transformer import (
    Array,
    SequenceCache,
    Transformer,
    TransformerShape,
    generate,
    greedy,
    rotate,
    rotation_tables,
    softmax,
)

SMALL = TransformerShape(layers=3, model_dim=48, heads=6, kv_heads=2, feed_forward_dim=40)
CONTEXT = 64
PROMPT = b"The ferryman answered, without looking up,"


@pytest.fixture(scope="module")
def small() -> Transformer:
    return Transformer(SMALL, seed=3, context=CONTEXT)


@pytest.fixture(scope="module")
def full_size() -> Transformer:
    return Transformer(TransformerShape(), seed=3, context=128)


def test_the_default_model_has_a_few_million_parameters(full_size: Transformer) -> None:
    assert 2_000_000 < full_size.parameters < 4_000_000


def test_equal_seeds_give_equal_weights_and_others_do_not(small: Transformer) -> None:
    again, other = Transformer(SMALL, 3, CONTEXT), Transformer(SMALL, 4, CONTEXT)
    for ours, theirs, different in zip(small.layers, again.layers, other.layers, strict=True):
        np.testing.assert_array_equal(ours.query, theirs.query)
        assert not np.array_equal(ours.query, different.query)
    np.testing.assert_array_equal(small.unembedding, again.unembedding)


@pytest.mark.parametrize("cuts", [range(1, len(PROMPT)), (1,), (7, 8, 30), (41,)], ids=str)
def test_decoding_step_by_step_equals_reading_everything_at_once(small: Transformer, cuts: range | tuple[int]) -> None:
    tokens = list(PROMPT)
    stepwise = small.empty_cache()
    for start, end in zip((0, *cuts), (*cuts, len(tokens)), strict=True):
        logits = small.forward(tokens[start:end], start, stepwise)

        at_once = small.empty_cache()
        np.testing.assert_allclose(logits, small.forward(tokens[:end], 0, at_once), rtol=2e-4, atol=2e-4)
    for ours, theirs in zip(stepwise.keys + stepwise.values, at_once.keys + at_once.values, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-4)


def test_a_token_changes_no_keys_or_values_before_it(small: Transformer) -> None:
    first, second = small.empty_cache(), small.empty_cache()
    small.forward(list(b"the same beginning, one end"), 0, first)
    small.forward(list(b"the same beginning, two end"), 0, second)
    for ours, theirs in zip(first.keys + first.values, second.keys + second.values, strict=True):
        np.testing.assert_array_equal(ours[:, :20], theirs[:, :20])
        assert not np.array_equal(ours[:, 20:27], theirs[:, 20:27])


def test_only_the_room_of_the_tokens_is_written(small: Transformer) -> None:
    cache = small.empty_cache()
    small.forward(list(b"abcdef"), 0, cache)
    before = [array.copy() for array in cache.keys + cache.values]
    small.forward(list(b"xyz"), 6, cache)
    for old, new in zip(before, cache.keys + cache.values, strict=True):
        np.testing.assert_array_equal(new[:, :6], old[:, :6])
        assert np.all(np.any(new[:, 6:9] != 0, axis=-1))
        assert not np.any(new[:, 9:])


def plain_forward(transformer: Transformer, tokens: list[int]) -> NDArray[np.float64]:
    """Logits after the last of ``tokens``, by loops over positions and heads, in double precision."""
    shape = transformer.shape

    def norm(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        return vector / np.sqrt(np.mean(vector**2) + 1e-5)

    def turn(vector: NDArray[np.float64], position: int) -> NDArray[np.float64]:
        half = len(vector) // 2
        pairs = vector[:half] + 1j * vector[half:]
        angles = position * shape.rope_base ** (-2.0 * np.arange(half) / len(vector))
        turned = pairs * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag])

    hidden = [transformer.embedding[token].astype(np.float64) for token in tokens]
    for layer in transformer.layers:
        query = [(norm(vector) @ layer.query).reshape(shape.heads, -1) for vector in hidden]
        key = [(norm(vector) @ layer.key).reshape(shape.kv_heads, -1) for vector in hidden]
        value = [(norm(vector) @ layer.value).reshape(shape.kv_heads, -1) for vector in hidden]
        for position in range(len(hidden)):
            heads = []
            for head in range(shape.heads):
                shared = head // (shape.heads // shape.kv_heads)
                scores = np.array(
                    [
                        turn(query[position][head], position) @ turn(key[past][shared], past) / np.sqrt(shape.head_dim)
                        for past in range(position + 1)
                    ]
                )
                weights = np.exp(scores) / np.exp(scores).sum()
                heads.append(sum(weight * value[past][shared] for past, weight in enumerate(weights)))
            vector = hidden[position] + np.concatenate(heads) @ layer.output
            gate, up = norm(vector) @ layer.gate, norm(vector) @ layer.up
            hidden[position] = vector + (gate / (1 + np.exp(-gate)) * up) @ layer.down
    logits: NDArray[np.float64] = norm(hidden[-1]) @ transformer.unembedding
    return logits


def test_forward_is_the_transformer_written_out_plainly(small: Transformer) -> None:
    tokens = list(b"grouped-query")
    logits = small.forward(tokens, 0, small.empty_cache())
    assert logits.shape == (SMALL.vocabulary,)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, plain_forward(small, tokens), rtol=1e-3, atol=1e-3)


def test_rope_turns_by_the_position_and_compares_by_the_distance() -> None:
    cos, sin = rotation_tables(CONTEXT, 8, 10_000.0)
    assert cos.shape == sin.shape == (CONTEXT, 4)
    query, key = np.random.default_rng(0).standard_normal((2, 1, 1, 8)).astype(np.float32)

    def at(vector: Array, position: int) -> Array:
        return rotate(vector, cos[position : position + 1, None], sin[position : position + 1, None])[0, 0]

    np.testing.assert_array_equal(at(query, 0), query[0, 0])
    np.testing.assert_allclose(np.linalg.norm(at(query, 40)), np.linalg.norm(query), rtol=1e-5)
    np.testing.assert_allclose(at(query, 9) @ at(key, 4), at(query, 45) @ at(key, 40), rtol=1e-4, atol=1e-5)
    assert not np.allclose(at(query, 9) @ at(key, 4), at(query, 9) @ at(key, 5), atol=1e-3)


def test_softmax_sums_to_one_and_gives_nothing_to_what_is_masked() -> None:
    weights = softmax(np.array([[1000.0, 999.0, -np.inf]], dtype=np.float32))
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
    assert weights[0, 2] == 0


def test_key_value_heads_are_fewer_than_query_heads_in_the_cache() -> None:
    shape = TransformerShape()
    assert shape.kv_heads < shape.heads
    assert shape.kv_cache_shape(4, 512) == (4, shape.kv_heads, 512, shape.model_dim // shape.heads)
    assert shape.kv_tensors == 2 * shape.layers


@pytest.mark.parametrize(
    "wrong",
    [{"heads": 5}, {"kv_heads": 3}, {"model_dim": 24, "heads": 8}],
    ids=str,
)
def test_impossible_shapes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="heads"):
        TransformerShape(**wrong)


@pytest.mark.parametrize(("tokens", "position"), [([], 3), ([1] * (CONTEXT + 1), 0), ([1], CONTEXT)])
def test_sequences_that_do_not_fit_are_refused(small: Transformer, tokens: list[int], position: int) -> None:
    with pytest.raises(ValueError, match=r"at least one token|there is room for 64"):
        small.forward(tokens, position, small.empty_cache())


def test_the_first_of_equally_likely_tokens_is_chosen() -> None:
    assert greedy(np.array([0.5, 2.0, 2.0], dtype=np.float32)) == 1


def test_company_slot_and_address_change_no_bit(full_size: Transformer) -> None:
    """Sequences joining and leaving a running batch, at odd addresses, among garbage: the tokens of each one alone."""
    prompts = [PROMPT, b"A", b"Why is the sea salt? " * 3, b"List three things that float.", b"Good night"]
    count, slots = 12, 3
    shape = full_size.shape.kv_cache_shape(slots, full_size.context)
    size = int(np.prod(shape))
    memory = np.full(full_size.shape.kv_tensors * size + 1, np.nan, dtype=np.float32)[1:]
    tensors = [memory[number * size :][:size].reshape(shape) for number in range(full_size.shape.kv_tensors)]

    waiting = list(enumerate(prompts))
    running: dict[int, tuple[int, int]] = {}
    tokens: dict[int, list[int]] = {number: [] for number, _ in waiting}
    while waiting or running:
        for slot in range(slots):
            cache = SequenceCache.of_slot(tensors, slot)
            if slot in running:
                number, length = running[slot]
                tokens[number].append(greedy(full_size.forward([tokens[number][-1]], length, cache)))
                running[slot] = number, length + 1
                if len(tokens[number]) == count:
                    del running[slot]
            elif waiting:
                number, prompt = waiting.pop(0)
                tokens[number].append(greedy(full_size.forward(list(prompt), 0, cache)))
                running[slot] = number, len(prompt)
                break

    for number, prompt in enumerate(prompts):
        assert tokens[number] == list(generate(full_size, prompt, count))


def test_a_damaged_kv_cache_does_not_go_unnoticed(full_size: Transformer) -> None:
    """If tokens did not depend on the cache, comparing them would prove nothing about it."""
    expected = list(generate(full_size, PROMPT, 24))
    for damaged in range(full_size.shape.kv_tensors):
        cache = full_size.empty_cache()
        token = greedy(full_size.forward(list(PROMPT), 0, cache))
        tensor = (cache.keys if damaged % 2 == 0 else cache.values)[damaged // 2]
        tensor[:, : len(PROMPT)] = np.roll(tensor[:, : len(PROMPT)], 1, axis=1)
        tokens = [token]
        for length in range(len(PROMPT), len(PROMPT) + 23):
            tokens.append(greedy(full_size.forward(tokens[-1:], length, cache)))
        assert tokens != expected, f"tensor {damaged} might as well not have been moved"


def test_prompts_lead_to_different_answers(full_size: Transformer) -> None:
    answers = {tuple(generate(full_size, prompt, 16)) for prompt in (PROMPT, PROMPT[:-1], b"A", b"B", b"Row, row.")}
    assert len(answers) == 5
    assert all(len(set(answer)) > 4 for answer in answers)

"""Heads against their formulas in NumPy and SciPy, and padding that changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import scipy.special

from prottrans_jax.downstream import heads

D_MODEL, LENGTH, OUTPUTS = 6, 11, 3
KINDS = {
    "linear": heads.Linear(OUTPUTS),
    "pooled linear": heads.Linear(OUTPUTS, level="protein"),
    "cnn": heads.Cnn(OUTPUTS, d_hidden=5),
    "bilstm": heads.BiLstm(OUTPUTS, d_hidden=4),
    "fnn": heads.Fnn(OUTPUTS, d_hidden=5),
    "fnn of the notebooks": heads.Fnn(OUTPUTS, d_hidden=D_MODEL, activation="tanh"),
    "fnn of residues": heads.Fnn(OUTPUTS, level="residue", d_hidden=5),
    "light attention": heads.LightAttention(OUTPUTS, d_hidden=5),
}


def _initialised(head, seed=0):
    x = jnp.zeros((1, 2, D_MODEL))
    variables = head.init(
        jax.random.key(seed), x, jnp.ones((1, 2), bool), deterministic=True
    )
    # Biases are 0 at first: draw all parameters.
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: rng.normal(size=p.shape).astype(np.float32) / 2, variables["params"]
    )


def _apply(head, params, x, mask):
    return np.asarray(head.apply({"params": params}, x, mask, deterministic=True))


def _vectors(length=LENGTH, seed=1):
    return np.random.default_rng(seed).normal(size=(length, D_MODEL)).astype("f4")


def _alone(head, params, x):
    return _apply(head, params, x[None], np.ones((1, len(x)), bool))[0]


def _convolution(params, x):
    """Cross-correlation along the first axis, zeros beyond the ends."""
    kernel = np.asarray(params["kernel"], np.float64)
    out = [
        sum(
            scipy.signal.correlate(x[:, i], kernel[:, i, o], mode="same")
            for i in range(x.shape[1])
        )
        for o in range(kernel.shape[2])
    ]
    return np.stack(out, 1) + params["bias"]


def _dense(params, x):
    return x @ np.asarray(params["kernel"], np.float64) + params["bias"]


def _lstm(params, x, size=4):
    """Hochreiter & Schmidhuber 1997 with forget gate; gates i f g o."""
    h, c, states = np.zeros(size), np.zeros(size), []
    for row in x:
        gates = {
            gate: row @ np.asarray(params[f"i{gate}"]["kernel"], np.float64)
            + h @ np.asarray(params[f"h{gate}"]["kernel"], np.float64)
            + params[f"h{gate}"]["bias"]
            for gate in "ifgo"
        }
        sigmoid = scipy.special.expit
        c = sigmoid(gates["f"]) * c + sigmoid(gates["i"]) * np.tanh(gates["g"])
        h = sigmoid(gates["o"]) * np.tanh(c)
        states.append(h)
    return np.array(states)


def _relu(x):
    return np.maximum(x, 0)


def _expected(name, params, x):
    x = x.astype(np.float64)
    if name == "linear":
        return _dense(params["output"], x)
    if name == "pooled linear":
        return _dense(params["output"], x.mean(0))
    if name == "cnn":
        hidden = _relu(_convolution(params["hidden"], x))
        return _convolution(params["output"], hidden)
    if name == "bilstm":
        forward = _lstm(params["forward"], x)
        backward = _lstm(params["backward"], x[::-1])[::-1]
        return _dense(params["output"], np.concatenate([forward, backward], 1))
    if name == "light attention":
        values = _convolution(params["values"], x)
        weights = scipy.special.softmax(_convolution(params["attention"], x), axis=0)
        pooled = np.concatenate([(values * weights).sum(0), values.max(0)])
        return _dense(params["output"], _relu(_dense(params["hidden"], pooled)))
    pooled = x if name == "fnn of residues" else x.mean(0)
    activation = np.tanh if name == "fnn of the notebooks" else _relu
    return _dense(params["output"], activation(_dense(params["hidden"], pooled)))


@pytest.mark.parametrize("name", KINDS)
def test_head_is_its_formula(name):
    params = _initialised(KINDS[name])
    x = _vectors()
    np.testing.assert_allclose(
        _alone(KINDS[name], params, x), _expected(name, params, x), rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize("name", KINDS)
def test_padding_changes_no_output_of_a_real_residue(name):
    head, params = KINDS[name], _initialised(KINDS[name])
    short, long = _vectors(5, seed=2), _vectors(LENGTH, seed=3)
    for length in (LENGTH, LENGTH + 9):  # Two buckets.
        batch = np.full((3, length, D_MODEL), np.nan, np.float32)
        batch[0, :5], batch[1, :LENGTH] = short, long
        mask = np.arange(length) < np.array([[5], [LENGTH], [0]])
        outputs = _apply(head, params, batch, mask)
        for row, x in enumerate((short, long)):
            own = outputs[row] if head.level == "protein" else outputs[row, : len(x)]
            np.testing.assert_allclose(
                own, _alone(head, params, x), rtol=1e-6, atol=1e-6
            )
        # A row of padding, as in the last batch, must not make a loss NaN.
        if head.level == "protein":
            assert np.isfinite(outputs[2]).all()


@pytest.mark.parametrize("width", [7, 201])
def test_taps_of_wide_and_narrow_convolutions_are_the_same(width):
    convolution = heads.Convolution(3, width)
    x, mask = _vectors()[None], np.ones((1, LENGTH), bool)
    params = convolution.init(jax.random.key(0), x, mask)["params"]
    assert (width * 3 > heads._JOINED_TAPS) == (width == 201)
    got = convolution.apply({"params": params}, x, mask)[0]
    kernel = np.asarray(params["kernel"], np.float64)
    middle = width // 2
    expected = sum(
        np.pad(x[0], ((middle, middle), (0, 0)))[tap : tap + LENGTH] @ kernel[tap]
        for tap in range(width)
    )
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_dropout_is_only_on_in_training():
    head, params = KINDS["cnn"], _initialised(KINDS["cnn"])
    x, mask = _vectors()[None], np.ones((1, LENGTH), bool)
    draws = [
        head.apply(
            {"params": params},
            x,
            mask,
            deterministic=False,
            rngs={"dropout": jax.random.key(seed)},
        )
        for seed in (0, 1)
    ]
    assert not np.allclose(*draws)


def test_head_of_another_level_is_refused_with_those_that_fit():
    with pytest.raises(ValueError, match=r"for each residue.*of a protein.*linear"):
        heads.make("cnn", "protein", 2)
    with pytest.raises(ValueError, match="head='cnm' is not known"):
        heads.make("cnm", "residue", 2)
    assert heads.make("linear", "protein", 2) == heads.Linear(2, level="protein")

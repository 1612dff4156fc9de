"""Mesh, rule table and rows of a host, on eight virtual CPU devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from prottrans_jax import partitioning


def _struct(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_mesh_fills_the_axis_left_open():
    assert dict(partitioning.make_mesh(-1, 2).shape) == {"data": 4, "model": 2}
    assert dict(partitioning.make_mesh(2, -1).shape) == {"data": 2, "model": 4}


@pytest.mark.parametrize(("data", "model"), [(3, 2), (-1, 3), (16, 1), (-1, -1)])
def test_mesh_that_does_not_fit_the_devices_is_refused(data, model):
    with pytest.raises(ValueError, match="data"):
        partitioning.make_mesh(data, model)


@pytest.mark.parametrize(
    ("scheme", "model", "kernel", "activation"),
    [
        ("data_parallel", 1, P(None, None, None), P("data", None, None)),
        ("tensor_parallel", 2, P(None, None, "model"), P("data", None, None)),
        ("fully_sharded", 1, P(None, "data", None), P("data", None, None)),
        ("2d", 2, P(None, "data", "model"), P("data", None, None)),
        ("2d_sequence", 2, P(None, "data", "model"), P("data", "model", None)),
    ],
)
def test_scheme_places_parameters_and_activations(scheme, model, kernel, activation):
    partitioner = partitioning.Partitioner(scheme=scheme, model=model)
    assert partitioner.spec(("layers", "embed", "mlp")) == kernel
    # The same name "embed", but "data" is taken by the batch.
    assert partitioner.spec(("batch", "length", "embed")) == activation


def test_heads_win_over_the_sequence_inside_attention():
    partitioner = partitioning.Partitioner(scheme="2d_sequence", model=4)
    assert partitioner.spec(("batch", "length", "heads", "kv")) == P(
        "data", None, "model", None
    )


def test_each_device_holds_its_part_of_a_fully_sharded_kernel():
    partitioner = partitioning.Partitioner(scheme="2d", model=2)
    axes = {"mlp": {"wi": ("embed", "mlp")}, "norm": ("embed",), "step": ()}
    shapes = {"mlp": {"wi": _struct(12, 6)}, "norm": _struct(12), "step": _struct()}
    shardings = partitioner.shardings(axes, shapes)
    assert shardings["norm"].shard_shape((12,)) == (3,)
    assert shardings["step"].shard_shape(()) == ()
    array = jax.device_put(jnp.zeros((12, 6)), shardings["mlp"]["wi"])
    assert array.addressable_shards[0].data.shape == (3, 3)


def test_size_that_does_not_divide_is_named():
    partitioner = partitioning.Partitioner(scheme="tensor_parallel", model=4)
    axes, shapes = {"mlp": {"wi": ("embed", "mlp")}}, {"mlp": {"wi": _struct(12, 6)}}
    with pytest.raises(ValueError, match=r"mlp/wi: dimension 1 \(mlp\) has size 6.*4"):
        partitioner.shardings(axes, shapes)
    kept = partitioning.Partitioner(
        scheme="tensor_parallel", model=4, extra_rules=(("mlp", None),)
    )
    assert kept.shardings(axes, shapes)["mlp"]["wi"].spec == P(None, None)


def test_misspelt_names_are_refused_with_the_nearest_one():
    with pytest.raises(ValueError, match="'fully_sharded'"):
        partitioning.Partitioner(scheme="fully_shard")
    with pytest.raises(ValueError, match="'joined_kv'"):
        partitioning.Partitioner().spec(("embed", "joint_kv"))
    with pytest.raises(ValueError, match="model=1"):
        partitioning.Partitioner(scheme="fully_sharded", model=2)


def test_axes_are_read_from_boxed_parameters():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_logical_partitioning(
                nn.initializers.ones_init(), ("embed", "mlp")
            )
            kernel = self.param("kernel", init, (3, 5))
            return x @ kernel + self.param("bias", nn.initializers.zeros_init(), (5,))

    boxed = jax.eval_shape(Layer().init, jax.random.key(0), jnp.ones((2, 3)))
    assert partitioning.logical_axes(boxed)["params"] == {
        "kernel": ("embed", "mlp"),
        "bias": (None,),
    }


@pytest.mark.parametrize(
    ("scheme", "model"),
    [
        ("data_parallel", 1),
        ("tensor_parallel", 2),
        ("fully_sharded", 1),
        ("2d", 4),
        ("2d_sequence", 2),
    ],
)
def test_every_scheme_computes_what_one_device_does(scheme, model):
    def loss(params, x):
        h = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        h = jax.nn.relu(jnp.einsum("ble,em->blm", h, params["wi"]))
        h = nn.with_logical_constraint(h, ("batch", "length", "mlp"))
        h = jnp.einsum("blm,me->ble", h, params["wo"])
        h = nn.with_logical_constraint(h, ("batch", "length", "embed"))
        return (h**2).mean()

    rng = np.random.default_rng(1)
    params = {
        "wi": rng.normal(size=(16, 24)).astype(np.float32),
        "wo": rng.normal(size=(24, 16)).astype(np.float32),
    }
    x = rng.normal(size=(8, 4, 16)).astype(np.float32)
    expected = jax.grad(loss)(params, x)

    partitioner = partitioning.Partitioner(scheme=scheme, model=model)
    axes = {"wi": ("embed", "mlp"), "wo": ("mlp", "embed")}
    shardings = partitioner.shardings(axes, params)
    with partitioner.scope():
        step = jax.jit(
            jax.grad(loss),
            in_shardings=(shardings, partitioner.batch_sharding),
            out_shardings=shardings,
        )
        batch = partitioner.put_batch({"x": x}, 8)
        got = step(jax.device_put(params, shardings), batch["x"])
    for name in params:
        assert got[name].sharding.is_equivalent_to(shardings[name], 2)
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-5)


def test_virtual_cpu_devices_keep_their_collectives_in_order():
    # A bfloat16 step over them hangs now and then otherwise (XLA of jax 0.10.2).
    options = partitioning.Partitioner(scheme="2d", model=2).compiler_options
    assert options == {"xla_cpu_enable_concurrency_optimized_scheduler": False}


def test_batch_arrives_in_order_and_split_by_rows():
    partitioner = partitioning.Partitioner(scheme="2d", model=2)
    assert partitioner.host_rows(12).tolist() == list(range(12))
    x = np.arange(12 * 5).reshape(12, 5)
    got = partitioner.put_batch({"x": x, "y": x[:, 0]}, 12)
    np.testing.assert_array_equal(got["x"], x)
    np.testing.assert_array_equal(got["y"], x[:, 0])
    assert {s.data.shape for s in got["x"].addressable_shards} == {(3, 5)}


def test_batch_that_data_does_not_divide_is_refused():
    partitioner = partitioning.Partitioner()
    with pytest.raises(ValueError, match=r"size 12.*'data' of size 8"):
        partitioner.host_rows(12)
    with pytest.raises(ValueError, match=r"'x' has 3 rows; this process feeds 8"):
        partitioner.put_batch({"x": np.zeros((3, 2))}, 8)


class _Remote:
    """A device of another process, as far as the arithmetic of rows looks at it."""

    def __init__(self, device, process_index):
        self._device, self.process_index = device, process_index

    def __getattr__(self, name):
        return getattr(self._device, name)


@pytest.mark.parametrize(
    ("model", "rows_of_process"),
    [
        # Four processes of two devices each, 16 rows.
        (1, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]),
        # A replica of the model spans two processes: both feed its rows.
        (4, [list(range(8)), list(range(8)), list(range(8, 16)), list(range(8, 16))]),
    ],
)
def test_processes_that_share_a_replica_feed_the_same_rows(
    monkeypatch, model, rows_of_process
):
    scheme = "data_parallel" if model == 1 else "tensor_parallel"
    partitioner = partitioning.Partitioner(scheme=scheme, model=model)
    process_of = {d: i // 2 for i, d in enumerate(partitioner.mesh.devices.flat)}
    real = type(partitioner.batch_sharding).devices_indices_map

    def remote(sharding, shape):
        return {
            _Remote(d, process_of[d]): index
            for d, index in real(sharding, shape).items()
        }

    monkeypatch.setattr(type(partitioner.batch_sharding), "devices_indices_map", remote)
    for process, rows in enumerate(rows_of_process):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert partitioner.host_rows(16).tolist() == rows

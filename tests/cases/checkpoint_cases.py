"""Small states of a run, saved and restored."""

import json

from etils import epath
import jax
from jax import numpy as jnp
import numpy as np
import optax

from prottrans_jax.checkpoints import checkpointing, manifests, stored_arrays

P = jax.sharding.PartitionSpec


def make_state(step, mesh=None):
    """A tree of the kinds of leaves that a run has; values depend on the step."""
    rng = np.random.default_rng(step)
    params = {
        "encoder": {
            "layers": {"wi": jnp.asarray(rng.normal(size=(3, 8, 4)), jnp.float32)},
            "half": jnp.asarray(rng.normal(size=(16,)), jnp.bfloat16),
        },
        "scale": jnp.asarray(rng.normal(size=(7,)), jnp.float32),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    state = {
        "step": jnp.int32(step),
        "params": params,
        "opt_state": optimizer.init(params),
        "carry": (),
    }
    if mesh is not None:
        state = jax.tree.map(jax.device_put, state, shardings_of(state, mesh))
    return state


def shardings_of(state, mesh):
    def sharding(leaf):
        spec = P(None, *mesh.axis_names[:2]) if leaf.ndim == 3 else P()
        return jax.sharding.NamedSharding(mesh, spec)

    return jax.tree.map(sharding, state)


def read_arrays(step_folder):
    """Arrays of a step by name, in their stored dtypes; verifies the step first."""
    step_folder = epath.Path(step_folder)
    assert manifests.problem(step_folder) is None
    stored = stored_arrays.on_disk(step_folder)
    arrays = stored_arrays.read(step_folder, stored, as_numpy=True)
    return dict(zip(stored, arrays, strict=True))


def read_metadata(step_folder):
    """Metadata that was saved with a step."""
    return json.loads((epath.Path(step_folder) / "metadata.json").read_text())


def make_mesh(*shape):
    devices = np.asarray(jax.devices()[: np.prod(shape)]).reshape(shape)
    return jax.sharding.Mesh(devices, ("data", "model")[: len(shape)])


def abstract(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=leaf.sharding
        ),
        state,
    )


def assert_bit_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save_steps(directory, steps, **kwargs):
    with checkpointing.Checkpointer(directory, **kwargs) as checkpointer:
        for step in steps:
            checkpointer.save(step, make_state(step), {"next_row": 11 * step})


def restore(directory, step=None, like=None):
    reader = checkpointing.Checkpointer(directory, read_only=True)
    return reader.restore(abstract(make_state(0) if like is None else like), step)


def files_of(path):
    return sorted(file for file in path.rglob("*") if file.is_file())

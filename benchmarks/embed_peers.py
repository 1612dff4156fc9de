"""Embedders of proteins with the same weights: ours, and torch in common usages.

A peer embeds proteins in its own batches and reports the number of computed tokens.
`product` measures the speed of matrix products alone.
"""

from collections.abc import Iterator, Sequence
import os
import pathlib
import time
from typing import Any, NamedTuple

import numpy as np

# Shape: class of transformers' configuration and its sizes.
# ProtT5-XL and ProtBert: Elnaggar et al. 2021, table 2.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "prot_t5_xl": (
        "T5",
        {
            "vocab_size": 128,
            "num_layers": 24,
            "d_model": 1024,
            "d_ff": 16384,
            "num_heads": 32,
            "d_kv": 128,
        },
    ),
    "prot_bert": (
        "Bert",
        {
            "vocab_size": 30,
            "num_hidden_layers": 30,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "max_position_embeddings": 40000,
        },
    ),
}


class Shape(NamedTuple):
    """Sizes that determine FLOPs."""

    family: str
    layers: int
    d_model: int
    d_ff: int
    inner: int
    specials: int

    def flops(self, residues: int) -> float:
        """FLOPs of one protein's products without padding; a multiply-add is 2."""
        length = residues + self.specials
        weights = 4 * self.d_model * self.inner + 2 * self.d_model * self.d_ff
        return 2.0 * self.layers * length * (weights + 2 * length * self.inner)


def shape_of(name: str, layers: int | None) -> Shape:
    """Sizes by name; with `layers` layers unless None."""
    kind, sizes = SHAPES[name]
    if kind == "T5":
        inner = sizes["num_heads"] * sizes["d_kv"]
        layers = layers or sizes["num_layers"]
        return Shape(kind, layers, sizes["d_model"], sizes["d_ff"], inner, 1)
    layers = layers or sizes["num_hidden_layers"]
    width = sizes["hidden_size"]
    return Shape(kind, layers, width, sizes["intermediate_size"], width, 2)


def make_weights(folder: pathlib.Path, name: str, layers: int | None) -> None:
    """Random weights in float16, as the released encoders are stored."""
    import torch
    import transformers

    torch.manual_seed(0)
    kind, sizes = SHAPES[name]
    field = "num_layers" if kind == "T5" else "num_hidden_layers"
    sizes = sizes | {field: shape_of(name, layers).layers}
    if kind == "T5":
        config = transformers.T5Config(**sizes, feed_forward_proj="relu")
        model: Any = transformers.T5EncoderModel(config)
    else:
        model = transformers.BertModel(
            transformers.BertConfig(**sizes), add_pooling_layer=False
        )
    model.to(torch.float16).save_pretrained(folder)


def read_fasta(path: str) -> list[str]:
    """Sequences of a FASTA file in order, with X for U, Z, O, B and J."""
    from prottrans_jax.proteins import fasta

    table = str.maketrans("UZOBJ", "XXXXX")
    return [str(x.residues, "ascii").translate(table) for x in fasta.read([path])]


def prott5_embedder_batches(sequences: Sequence[str]) -> Iterator[list[str]]:
    """Batches of ProtTrans's `prott5_embedder.py` with its default limits.

    The longest first; a batch ends at 100 proteins, at 4,000 residues with the last
    protein counted twice, or with a protein of more than 1,000 residues.
    """
    batch: list[str] = []
    for sequence in sorted(sequences, key=len, reverse=True):
        batch.append(sequence)
        residues = sum(map(len, batch)) + len(sequence)
        if len(batch) >= 100 or residues >= 4000 or len(sequence) > 1000:
            yield batch
            batch = []
    if batch:
        yield batch


def sorted_batches(sequences: Sequence[str], tokens: int) -> Iterator[list[str]]:
    """Batches of proteins sorted by length, with at most `tokens` padded residues."""
    batch: list[str] = []
    for sequence in sorted(sequences, key=len, reverse=True):
        if batch and len(batch[0]) * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(sequence)
    if batch:
        yield batch


class Task(NamedTuple):
    """A worker's task: "embed", "product", or "save" its vectors."""

    kind: str
    sequences: list[str]
    path: pathlib.Path | None = None


class Peer:
    """Interface for `duel.serve`."""

    about = ""
    shape: Shape
    product_rows = 512

    def step(self, task: Task) -> float:
        """Runs a task; returns the mean absolute element, or GFLOP/s of products."""
        if task.kind == "product":
            return self.product()
        if task.kind == "save":
            vectors = np.concatenate(self.embed(task))
            np.save(task.path, vectors.astype(np.float32))
            return 0.0
        size = [np.abs(x[:, ::64].astype(np.float32)).mean() for x in self.embed(task)]
        return float(np.mean(size))

    def prepare(self, population: list[str]) -> None:
        """Called once with all proteins of the job."""

    def embed(self, task: Task) -> list[np.ndarray]:
        """[residues, d_model] of every protein."""
        raise NotImplementedError

    def batches(self, sequences: list[str]) -> Iterator[list[str]]:
        """Batches of proteins."""
        raise NotImplementedError

    def tokens(self, sequences: list[str]) -> int:
        """Tokens computed for these proteins, padding included."""
        return sum(
            (max(map(len, batch)) + self.shape.specials) * len(batch)
            for batch in self.batches(sequences)
        )

    def product(self) -> float:
        """GFLOP/s of `product_rows` through a feed-forward block's two products."""
        raise NotImplementedError


class Ours(Peer):
    """The encoder as `prottrans embed` runs it."""

    def __init__(self, folder: pathlib.Path, shape: Shape, precision: str, device: str):
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(device, device)
        # Peers share the GPU.
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
        import jax

        import prottrans_jax
        from prottrans_jax.embed import process

        process.prepare()
        names = {"bf16": "bfloat16", "f32": "float32", "int8": "int8"}
        dtype = names[precision]
        self.jax = jax
        self.shape = shape
        self.dtype = dtype
        self.encoder = prottrans_jax.load_encoder(folder, dtype=dtype)
        self.embedder = self.encoder.make_embedder()
        self.buckets: Any = None
        self.about = f"jax {jax.__version__}"
        if device == "gpu":
            self.peak_gib = self._device_peak_gib

    def _device_peak_gib(self) -> float:
        return self.jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**30

    def prepare(self, population: list[str]) -> None:
        """Chooses padded lengths for the whole job, as `prottrans embed` does."""
        self.buckets = self.embedder.buckets([len(x) for x in population])

    def _work(self, sequences):
        return self.embedder.work([x.encode() for x in sequences], self.buckets)

    def embed(self, task: Task) -> list[np.ndarray]:
        """[residues, d_model] of every protein."""
        work = self._work(task.sequences)
        vectors = (x.residues for *_, x in self.embedder.run(work))
        return [np.asarray(x, np.float32) for x in vectors]

    def tokens(self, sequences: list[str]) -> int:
        """Tokens computed for these proteins, padding included."""
        work = self._work(sequences)
        return sum(item.batch.tokens for item in work)

    def product(self) -> float:
        """As in `Peer`."""
        import jax.numpy as jnp

        from prottrans_jax.kernels import frozen, x86

        kind = self.dtype
        if kind == "int8" and x86.is_usable():
            kind = "bfloat16"  # Type of the input to products with int8 kernels.
        wide = jnp.int32 if kind == "int8" else jnp.float32

        def multiply(x, kernel):
            # As in the model: exact float32 products, default precision otherwise.
            if x86.can_multiply(x, kernel, x.dtype):
                return x86.product(x, kernel, x.dtype)
            exact = "highest" if x.dtype == jnp.float32 else None
            product = jnp.matmul(
                x, kernel, preferred_element_type=wide, precision=exact
            )
            return product.astype(x.dtype)

        def run(x, first, second):
            with frozen.scope():
                return multiply(multiply(x, first), second)

        d_model, d_ff = self.shape.d_model, self.shape.d_ff
        rows = self.product_rows
        first, second, x = _operands(rows, d_model, d_ff)
        scale = 100 if self.dtype == "int8" else 1
        first, second = (jnp.asarray(scale * k, self.dtype) for k in (first, second))
        x = jnp.asarray((100 if kind == "int8" else 1) * x, kind)
        jitted = self.jax.jit(run)

        def step():
            jitted(x, first, second).block_until_ready()

        return _rate(step, rows, self.shape)


class Torch(Peer):
    """transformers' model; `way` is eager, sdpa, compiled, int8 or prott5_embedder."""

    def __init__(
        self,
        folder: pathlib.Path,
        shape: Shape,
        precision: str,
        way: str,
        batch_tokens: int,
        device: str,
    ):
        if way == "compiled":
            os.environ["TORCHINDUCTOR_FREEZING"] = "1"
        import torch
        import transformers

        from prottrans_jax.proteins import vocabulary

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.torch = torch
        self.shape = shape
        self.way = way
        self.batch_tokens = batch_tokens
        is_t5 = shape.family == "T5"
        self.vocabulary = vocabulary.PROT_T5 if is_t5 else vocabulary.PROT_BERT
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        kind = transformers.T5EncoderModel if is_t5 else transformers.BertModel
        keywords: dict[str, Any] = {} if is_t5 else {"add_pooling_layer": False}
        if way in ("eager", "sdpa"):
            keywords["attn_implementation"] = way
        self.device = {"gpu": "cuda"}.get(device, device)
        if device == "gpu":
            self.peak_gib = self._device_peak_gib
            if way == "prott5_embedder":
                self.dtype = torch.float16  # As in the script.
        model = kind.from_pretrained(folder, dtype=self.dtype, **keywords).eval()
        model = model.to(self.device)
        if way == "int8":
            model = torch.ao.quantization.quantize_dynamic(
                model, {torch.nn.Linear}, dtype=torch.qint8
            )
        if way == "compiled":
            model = torch.compile(model)
        self.model = model
        self.about = (
            f"torch {torch.__version__}, transformers {transformers.__version__}"
        )

    def _device_peak_gib(self) -> float:
        return self.torch.cuda.max_memory_allocated() / 2**30

    def batches(self, sequences: list[str]) -> Iterator[list[str]]:
        """Batches of proteins."""
        if self.way == "prott5_embedder":
            return prott5_embedder_batches(sequences)
        return sorted_batches(sequences, self.batch_tokens)

    def embed(self, task: Task) -> list[np.ndarray]:
        """[residues, d_model] of every protein."""
        torch, result = self.torch, []
        vocabulary = self.vocabulary
        table = np.asarray(vocabulary.byte_table)
        is_t5 = self.shape.family == "T5"
        pad: Any = vocabulary.pad_id
        start: Any = None if is_t5 else vocabulary.cls_id
        end: Any = vocabulary.eos_id if is_t5 else vocabulary.sep_id
        for batch in self.batches(task.sequences):
            longest = max(map(len, batch)) + self.shape.specials
            tokens = np.full((len(batch), longest), pad, np.int64)
            mask = np.zeros_like(tokens)
            first = 0 if is_t5 else 1
            for row, sequence in enumerate(batch):
                last = first + len(sequence)
                if not is_t5:
                    tokens[row, 0] = start
                tokens[row, first:last] = table[
                    np.frombuffer(sequence.encode(), np.uint8)
                ]
                tokens[row, last] = end
                mask[row, : last + 1] = 1
            with torch.inference_mode(self.way != "compiled"), torch.no_grad():
                output = self.model(
                    input_ids=torch.from_numpy(tokens).to(self.device),
                    attention_mask=torch.from_numpy(mask).to(self.device),
                )
                hidden = output.last_hidden_state.cpu()
            for row, sequence in enumerate(batch):
                vectors = hidden[row, first : first + len(sequence)]
                result.append(vectors.float().numpy())
        return result

    def product(self) -> float:
        """As in `Peer`."""
        torch = self.torch
        linear = torch.nn.functional.linear
        d_model, d_ff = self.shape.d_model, self.shape.d_ff
        rows = self.product_rows
        second, first, x = (
            torch.from_numpy(array).to(self.device, self.dtype)
            for array in _operands(rows, d_model, d_ff)
        )

        def step():
            linear(linear(x, first), second)
            if self.device == "cuda":
                torch.cuda.synchronize()

        with torch.inference_mode():
            return _rate(step, rows, self.shape)


def _operands(rows: int, d_model: int, d_ff: int) -> list[np.ndarray]:
    """Two random kernels and an input: a GPU multiplies constants faster."""
    generator = np.random.default_rng(0)
    shapes = (d_model, d_ff), (d_ff, d_model), (rows, d_model)
    return [0.02 * generator.standard_normal(shape, np.float32) for shape in shapes]


def _rate(run: Any, rows: int, shape: Shape, seconds: float = 1.0) -> float:
    """GFLOP/s of `run`, repeated for about a second."""
    run()
    count, start = 0, time.perf_counter()
    while (now := time.perf_counter() - start) < seconds:
        run()
        count += 1
    return count * 4.0 * rows * shape.d_model * shape.d_ff / now / 1e9


def make(
    name: str, folder: pathlib.Path, shape: Shape, batch_tokens: int, device: str
) -> Peer:
    """A peer by a lane's name: "ours-bf16", "sdpa-f32", "prott5_embedder" ..."""
    way, _, precision = name.partition("-")
    peer: Peer
    if way == "ours":
        peer = Ours(folder, shape, precision, device)
    else:
        peer = Torch(folder, shape, precision or "f32", way, batch_tokens, device)
    peer.product_rows = 16384 if device == "gpu" else 512
    return peer

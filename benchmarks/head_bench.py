"""Training of the paper's CNN head: ours streamed from disk against torch in memory.

    python benchmarks/head_bench.py --labels=netsurfp2_train.q3.jsonl.gz --rounds=4 \
        --peer_python=VENV/bin/python

Both train on the same made-up vectors (float16, 1,024 numbers) of the same proteins,
and take turns: an epoch of ours, an epoch of torch, and so on; the first epoch of each,
in which ours compiles, does not count. Ours reads each batch from the file, torch has
all vectors in memory. torch: the published Conv2d layers, padding to the longest of a
batch in random order, Adam, float32. Prints residues/s, ratio by round, peak memory.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

D_MODEL, BATCH = 1024, 64


def _read_labels(path, number):
    from prottrans_jax.downstream import labelled, readers

    data = readers.read(path, task="secondary_structure_3")
    distinct = {protein.residues: protein for protein in data.proteins}
    return labelled.LabelledSet(data.task, list(distinct.values())[:number])


def _write_vectors(data, path):
    from prottrans_jax.downstream import stored_vectors

    rng = np.random.default_rng(0)
    arrays = {
        stored_vectors._key(protein.residues): rng.standard_normal(
            (len(protein.residues), D_MODEL), np.float32
        ).astype(np.float16)
        for protein in data.proteins
    }
    np.savez(path, **arrays)


def _ours(folder, labels, number):
    """Yields after each epoch."""
    import jax

    from prottrans_jax import partitioning
    from prottrans_jax.downstream import (
        head_objective,
        heads,
        labelled_rows,
        stored_vectors,
    )
    from prottrans_jax.optimizers import algorithms
    from prottrans_jax.training import infeed, train_state, train_step

    vectors = stored_vectors.StoredVectors(folder / "vectors.npz")
    inputs = labelled_rows.VectorInputs(vectors, "made up")
    rows = labelled_rows.LabelledRows(
        _read_labels(labels, number), inputs, batch_size=BATCH, is_training=True
    )
    objective = head_objective.HeadObjective(
        heads.Cnn(3), head_objective.FrozenVectors(D_MODEL, ""), False
    )
    optimizer = algorithms.AdamW(learning_rate=1e-3, weight_decay=0.0)
    partitioner = partitioning.Partitioner(num_devices=1)
    plan = train_state.plan(
        objective, optimizer, partitioner, train_state.batch_shapes(rows)
    )
    state = train_state.initialize(plan, 0)
    step = train_step.make_train_step(plan, seed=0)
    per_epoch, start = rows.batches_per_epoch, 0
    with partitioner.scope():
        while True:
            stop = start + per_epoch
            with infeed.Infeed(
                lambda i: partitioner.put_batch(rows.batch(i), BATCH), start, stop
            ) as feed:
                for _, batch in feed:
                    state, outputs = step(state, batch)
            jax.block_until_ready(outputs)
            start = stop
            yield


def _torch(folder, number):
    """Yields after each epoch; imports nothing of this package."""
    import torch

    torch.set_num_threads(2)
    with np.load(folder / "vectors.npz") as file:
        vectors = [torch.from_numpy(file[key]) for key in file.files]
    with np.load(folder / "labels.npz") as file:
        labels = [torch.from_numpy(file[key]).long() for key in file.files]
    head = torch.nn.Sequential(
        torch.nn.Conv2d(D_MODEL, 32, kernel_size=(7, 1), padding=(3, 0)),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.25),
        torch.nn.Conv2d(32, 3, kernel_size=(7, 1), padding=(3, 0)),
    )
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    loss_of = torch.nn.CrossEntropyLoss(ignore_index=-1)
    pad = torch.nn.utils.rnn.pad_sequence
    while True:
        order = torch.randperm(number).tolist()
        for start in range(0, number, BATCH):
            chosen = order[start : start + BATCH]
            x = pad([vectors[i] for i in chosen], batch_first=True).float()
            y = pad([labels[i] for i in chosen], batch_first=True, padding_value=-1)
            # [batch, length, d_model] -> [batch, d_model, length, 1]
            logits = head(x.permute(0, 2, 1).unsqueeze(-1)).squeeze(-1)
            loss = loss_of(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield


def _work(flags):
    """A worker: an epoch for each line on standard input."""
    folder = pathlib.Path(flags.worker_folder)
    if flags.worker == "ours":
        epochs = _ours(folder, flags.labels, flags.proteins)
    else:
        epochs = _torch(folder, flags.proteins)
    for _ in sys.stdin:
        begin = time.perf_counter()
        next(epochs)
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps([seconds, peak]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", required=True)
    parser.add_argument("--peer_python", default=sys.executable)
    parser.add_argument("--proteins", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--worker_folder", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        return _work(flags)
    data = _read_labels(flags.labels, flags.proteins)
    residues = sum(len(protein.residues) for protein in data.proteins)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        _write_vectors(data, folder / "vectors.npz")
        np.savez(
            folder / "labels.npz",
            *[np.where(p.counts, p.labels, -1) for p in data.proteins],
        )
        size = (folder / "vectors.npz").stat().st_size / 2**30
        print(f"{len(data.proteins)} proteins, {residues:,} residues, {size:.2f} GiB")
        workers = {
            kind: subprocess.Popen(
                [
                    *(python, __file__, f"--worker={kind}", f"--worker_folder={name}"),
                    *(f"--labels={flags.labels}", f"--proteins={len(data.proteins)}"),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for kind, python in (("ours", sys.executable), ("torch", flags.peer_python))
        }
        ratios = []
        for number in range(-1, flags.rounds):
            results = {}
            for kind, worker in workers.items():
                assert worker.stdin and worker.stdout
                worker.stdin.write("epoch\n")
                worker.stdin.flush()
                results[kind] = json.loads(worker.stdout.readline())
            line = ", ".join(
                f"{kind} {residues / seconds:,.0f} residues/s, peak {peak:.2f} GiB"
                for kind, (seconds, peak) in results.items()
            )
            ratio = results["torch"][0] / results["ours"][0]
            print(f"{'warm-up' if number < 0 else f'round {number + 1}'}: {line}")
            if number >= 0:
                ratios.append(ratio)
        for worker in workers.values():
            assert worker.stdin
            worker.stdin.close()
            worker.wait()
    ratios.sort()
    print(f"ratio {ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()

"""A FASTA file embedded into an output file, so that no kill loses or doubles work.

  look      reads the input once: counts, checks, duplicates, what is known already
  compute   windows of the input, sorted by length, in batches; results go into shards
  merge     shards and reused vectors, in the order of the input, into the output

Every result is a function of the input and the settings alone: batches are planned from
the whole window even where parts of it are done, so a run that was killed and goes on
writes the same bytes as one that was not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import concurrent.futures
import dataclasses
import errno
import json
import os
import pathlib
import resource
import shutil
import sys
import time
from typing import Any

from absl import logging
import numpy as np

from prottrans_jax.embed import (
    chunks,
    embedder,
    forward,
    inputs,
    keys,
    pooling,
    reuse,
    shards,
    writers,
)

# Proteins that are sorted by length together: only their residues are held.
_WINDOW = 8192
_COMMIT_BYTES = 64 << 20
_COMMIT_SECONDS = 30.0
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Options:
    """What to compute and how to treat what is odd.

    Attributes:
      per_residue: Whether to write a vector per residue.
      per_protein: Whether to write one per protein. With both, two files are written:
        OUTPUT.per_residue.h5 and OUTPUT.per_protein.h5. With neither, per residue.
      pool: How the vector of a protein is made: "mean", "max" or "cls".
      layers: Which hidden states; see `embed.forward.parse_layers`.
      key: Under which name a protein is stored; see `embed.keys`.
      residue_dtype: Stored type of vectors per residue. None: float16, as UniProt.
      protein_dtype: Stored type of vectors per protein. None: float32.
      max_length: Residues above which `long` says what is done; None: no limit.
      long: "error", "skip", "chunk" or "truncate".
      chunk_overlap: Residues that neighbouring pieces share; None: a quarter of
        `max_length`.
      on_bad: What to do about a record that cannot be used: "error" or "skip".
      on_duplicate: About a key that comes again with another sequence: "error",
        "suffix" or "first".
      max_tokens: Padded tokens that go through the model at once; None: by device.
      max_rows: Limit of the proteins among these.
      resume: Whether to go on from what an earlier run left.
      overwrite: Whether to replace what another model or other settings made.
      reuse: HDF5 files with vectors of the same model, by accession, that need not be
        computed again.
      devices: Devices to use in turn; None: all accelerators, or one CPU.
    """

    per_residue: bool = False
    per_protein: bool = False
    pool: str = "mean"
    layers: "int | str | Sequence[int]" = -1
    key: str = "auto"
    residue_dtype: str | None = None
    protein_dtype: str | None = None
    max_length: int | None = None
    long: str = "error"
    chunk_overlap: int | None = None
    on_bad: str = "error"
    on_duplicate: str = "error"
    max_tokens: int | None = None
    max_rows: int | None = None
    resume: bool = True
    overwrite: bool = False
    reuse: tuple[str, ...] = ()
    devices: Any = None

    def __post_init__(self):
        if isinstance(self.reuse, str | os.PathLike):
            object.__setattr__(self, "reuse", (str(self.reuse),))
        for field, value, known in (
            ("key", self.key, keys.SCHEMES),
            ("long", self.long, chunks.POLICIES),
            ("on_bad", self.on_bad, ("error", "skip")),
            ("on_duplicate", self.on_duplicate, inputs.ON_DUPLICATE),
        ):
            if value not in known:
                raise ValueError(
                    f"{field}={value!r} is not known. Choose one of {', '.join(known)}."
                )
        for field in ("residue_dtype", "protein_dtype"):
            if getattr(self, field) not in (None, "float16", "float32"):
                raise ValueError(
                    f"{field}={getattr(self, field)!r}: files hold float16 or float32."
                )


@dataclasses.dataclass
class Report:
    """What a run did.

    Attributes:
      outputs: Files written.
      embedded: Proteins computed by this run.
      resumed: Proteins that an earlier run of the same job had computed.
      reused: Proteins taken from other files, or from the output as it was.
      repeated: Records whose key and sequence came before.
      kept: Proteins of the output as it was that are not in this input.
      skipped: Records left out, with reasons.
      residues: Residues computed by this run.
      seconds: Of computing, without start and merging.
      peak_memory_bytes: Of the process.
      padding: Share of the computed tokens that was padding.
    """

    outputs: list[pathlib.Path]
    embedded: int = 0
    resumed: int = 0
    reused: int = 0
    repeated: int = 0
    kept: int = 0
    skipped: list[inputs.Skipped] = dataclasses.field(default_factory=list)
    residues: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    padding: float = 0.0

    @property
    def residues_per_second(self) -> float:
        """Real residues computed per second."""
        return self.residues / self.seconds if self.seconds else 0.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """The pre-flight line's figures.

    Attributes:
      proteins: To be in the output.
      residues: Of these.
      longest: Residues of the longest.
      longest_id: Its id.
      to_compute: Proteins not known yet.
      to_compute_residues: Of these.
      output_bytes: Size of the output, about.
      needed_bytes: Space needed, shards included.
      free_bytes: Space free at the output.
    """

    proteins: int
    residues: int
    longest: int
    longest_id: str
    to_compute: int
    to_compute_residues: int
    output_bytes: int
    needed_bytes: int
    free_bytes: int


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is: proteins and residues done of those to be computed."""

    proteins: int
    residues: int
    of_proteins: int
    of_residues: int
    seconds: float


class DiskFullError(OSError):
    """No space left; says what is kept and what to do."""


def output_paths(
    output: str | os.PathLike, options: Options
) -> dict[str, pathlib.Path]:
    """File of each kind, "residues" and "protein", that the options ask for."""
    both = options.per_residue and options.per_protein
    per_residue = options.per_residue or not options.per_protein
    path = writers.check_path(output, per_residue=per_residue)
    if both:
        return {
            "residues": path.with_name(f"{path.stem}.per_residue{path.suffix}"),
            "protein": path.with_name(f"{path.stem}.per_protein{path.suffix}"),
        }
    return {"residues" if per_residue else "protein": path}


def embed_fasta(
    encoder: Any,
    source: str | os.PathLike,
    output: str | os.PathLike,
    options: Options | None = None,
    *,
    on_plan: Callable[[Plan], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Embeds a FASTA file; goes on where an earlier call was stopped.

    Args:
      encoder: `encoders.Encoder`.
      source: FASTA, plain or compressed; "-" is standard input.
      output: File to write, ending in .h5, .npz, .parquet, .zarr, .csv or .tsv.
      options: What to compute.
      on_plan: Called before anything is computed.
      on_progress: Called after each batch.

    Returns:
      What was done. Records left out are in it and in OUTPUT.skipped.tsv.

    Raises:
      fasta.FastaError: The input is odd; says where.
      ValueError: Duplicate ids, proteins over the limit, unknown names.
      shards.LockedError: Another process writes to this output.
      shards.OtherRunError: The output was made with another model or settings.
      DiskFullError: No space left; what was committed stays.
    """
    options = options or Options()
    return _Job(encoder, source, output, options, on_plan, on_progress).run()


class _Job:
    def __init__(self, encoder, source, output, options, on_plan, on_progress):
        self.encoder = encoder
        self.options = options
        self.on_plan = on_plan or (lambda plan: None)
        self.on_progress = on_progress or (lambda progress: None)
        self.paths = output_paths(output, options)
        self.output = pathlib.Path(output)
        self.source = str(source)
        self.layers = forward.parse_layers(options.layers, encoder.num_layers)
        has_cls = encoder.prefix[:1] == (encoder.vocabulary.cls_id,)
        self.pool = pooling.check(options.pool, has_cls=has_cls)
        if "protein" in self.paths and self.pool is None:
            raise ValueError("per_protein needs a pooling: mean, max or cls.")
        self.dtypes = {
            "residues": np.dtype(options.residue_dtype or "float16"),
            "protein": np.dtype(options.protein_dtype or "float32"),
        }
        self.identity = self._identity()
        self.report = Report(list(self.paths.values()))

    def _identity(self) -> dict[str, Any]:
        """What two runs must share for one to go on with the other's work."""
        options = self.options
        limited = options.max_length is not None and options.long != "error"
        return {
            "format": _FORMAT,
            "model_name": self.encoder.name,
            "weights_fingerprint": self.encoder.fingerprint,
            "dtype_compute": np.dtype(self.encoder.config.dtype).name,
            "layer": str(self.layers),
            "outputs": sorted(self.paths),
            "pooling": self.pool if "protein" in self.paths else None,
            "dtype": {kind: self.dtypes[kind].name for kind in sorted(self.paths)},
            "key": options.key,
            "long": (
                [options.long, options.max_length, options.chunk_overlap]
                if limited
                else None
            ),
        }

    def run(self) -> Report:
        self.output.parent.mkdir(parents=True, exist_ok=True)
        parts = shards.Parts(
            self.output,
            self.identity,
            fresh=self.options.overwrite or not self.options.resume,
        )
        try:
            return self._run(parts)
        except OSError as error:
            if not _is_disk_full(error):
                raise
            raise DiskFullError(
                errno.ENOSPC,
                f"no space left at {self.output.parent}. What was computed is kept in "
                f"{parts.folder}: free some space and run the same command again.",
            ) from error
        finally:
            parts.close()

    def _run(self, parts: shards.Parts) -> Report:
        if self.source == "-":
            self.source = str(inputs.spool(None, parts.folder))
        found = inputs.look(
            self.source,
            key_scheme=self.options.key,
            on_bad=self.options.on_bad,
            on_duplicate=self.options.on_duplicate,
        )
        self._apply_limits(found)
        if self._is_done(found):
            self.report.skipped = found.skipped
            self.report.reused = len(found.chosen)
            parts.remove()
            return self.report
        entries = found.stored_entries()
        known = self._known(found, entries)
        self._say_plan(found, known.where, parts.find(entries))
        self._compute(found, entries, known.where, parts)
        self.report.skipped = found.skipped
        self.report.repeated = int((found.fates == inputs.SAME).sum())
        self.report.reused = int(known.where.sum())
        self._write_skipped(found.skipped)
        if self._needs_merge(known, found):
            self._merge(found, entries, known, parts)
        known.close()
        parts.remove()
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.report.peak_memory_bytes = usage * (
            1 if sys.platform == "darwin" else 1024
        )
        return self.report

    # ------------------------------------------------------------------------ look

    def _apply_limits(self, found: inputs.Inputs) -> None:
        options = self.options
        limit = options.max_length
        if limit is not None:
            too_long = (found.fates == inputs.EMBED) & (found.lengths > limit)
            if too_long.any() and options.long == "error":
                worst = next(found.proteins(too_long))
                raise ValueError(
                    f"{found.path}:{worst.line}: {worst.name!r} has "
                    f"{len(worst.residues):,} residues, more than --max-length={limit} "
                    f"({int(too_long.sum())} such in all). Raise it, or say what to do "
                    "about them: --long skip, chunk or truncate."
                )
            if options.long == "skip":
                found.leave_out(
                    too_long,
                    "longer than --max-length",
                    lambda p: f"{len(p.residues)} residues, limit {limit}",
                )
        most = self.encoder.max_residues
        if most is not None and not (limit and limit <= most and options.long in _CUTS):
            found.leave_out(
                found.lengths > most,
                "longer than the model has positions for",
                lambda p: (
                    f"{len(p.residues)} residues, the model takes {most}; "
                    f"--max-length {most} --long chunk embeds it in pieces"
                ),
            )

    def _is_done(self, found: inputs.Inputs) -> bool:
        """Whether the outputs are of this very input and these settings."""
        for path in self.paths.values():
            beside = path.with_name(path.name + ".json")
            if self.options.overwrite or not (path.exists() and beside.is_file()):
                return False
            about = json.loads(beside.read_text(encoding="utf-8"))
            if not about.get("complete"):
                return False
            if about.get("run") != json.loads(json.dumps(self.identity)):
                return False
            if about.get("input", {}).get("sha256") != found.sha256 or about.get(
                "skipped"
            ) != len(found.skipped):
                return False
        return True

    def _known(self, found: inputs.Inputs, entries: np.ndarray) -> reuse.Known:
        """Vectors that need not be computed: of the output as it is, of other files."""
        before = {
            kind: path
            for kind, path in self.paths.items()
            if path.exists() and not self.options.overwrite
        }
        for path in before.values():
            shards.refuse_other_run(path, reuse.identity_of(path), self.identity)
        return reuse.find(
            found,
            before if len(before) == len(self.paths) else {},
            self.options.reuse,
            kinds=list(self.paths),
            pool=self.pool,
            shape=(*self._lead(), self.encoder.d_model),
            lengths=self._stored_lengths(found),
        )

    def _stored_lengths(self, found: inputs.Inputs) -> np.ndarray:
        limit = self.options.max_length
        if limit is not None and self.options.long == "truncate":
            return np.minimum(found.lengths, limit)
        return found.lengths

    def _lead(self) -> tuple[int, ...]:
        stacked = self.layers.combine == "stack"
        return (len(self.layers.indices),) if stacked else ()

    def _say_plan(self, found, known, places) -> None:
        chosen = found.fates == inputs.EMBED
        missing = chosen & ~known & (places[:, 0] < 0)
        lengths = self._stored_lengths(found)
        size = int(np.prod((*self._lead(), self.encoder.d_model), dtype=np.int64))

        def num_bytes(where):
            total = 0
            if "residues" in self.paths:
                residues = int(lengths[where].sum())
                total += residues * size * self.dtypes["residues"].itemsize
            if "protein" in self.paths:
                total += int(where.sum()) * size * self.dtypes["protein"].itemsize
            return total + 400 * int(where.sum()) * len(self.paths)

        longest = int(found.lengths[chosen].max()) if chosen.any() else 0
        self.on_plan(
            Plan(
                proteins=int(chosen.sum()),
                residues=int(found.lengths[chosen].sum()),
                longest=longest,
                longest_id=found.longest if longest else "",
                to_compute=int(missing.sum()),
                to_compute_residues=int(found.lengths[missing].sum()),
                output_bytes=num_bytes(chosen),
                needed_bytes=num_bytes(chosen) + num_bytes(missing),
                free_bytes=shutil.disk_usage(self.output.parent).free,
            )
        )

    # --------------------------------------------------------------------- compute

    def _compute(self, found, entries, known, parts: shards.Parts) -> None:
        places = parts.find(entries)
        to_plan = (found.fates == inputs.EMBED) & ~known
        missing = to_plan & (places[:, 0] < 0)
        self.report.resumed = int((to_plan & ~missing).sum())
        if not missing.any():
            return
        limit, cut = self.options.max_length, self.options.long in _CUTS
        in_pieces = np.zeros(len(missing), bool)
        if limit is not None and cut:
            in_pieces = found.lengths > limit
        started = time.perf_counter()
        total = int(missing.sum()), int(found.lengths[missing].sum())

        def progress():
            self.on_progress(
                Progress(
                    self.report.embedded,
                    self.report.residues,
                    *total,
                    time.perf_counter() - started,
                )
            )

        def too_large(work, error):
            where = np.zeros(len(missing), bool)
            where[[p.number for p in work.tag[work.batch.members[0]]]] = True
            logging.error("%s", error)
            found.leave_out(where, "does not fit into memory", lambda p: str(error))

        with _Committer(parts) as committer:
            for some, piecewise in ((to_plan & ~in_pieces, False), (in_pieces, True)):
                todo = some & to_plan
                if not (todo & missing).any():
                    continue
                results = (
                    self._in_pieces(found, todo, missing)
                    if piecewise
                    else self._whole(found, todo, missing, too_large)
                )
                for protein, embedding in results:
                    committer.add(
                        shards.Item(
                            entries[protein.number].tobytes(),
                            self._stored(protein, embedding),
                        )
                    )
                    self.report.embedded += 1
                    self.report.residues += len(protein.residues)
                    progress()
            self.report.seconds = time.perf_counter() - started

    def _embedder(self, *, pool: bool, residues: bool) -> embedder.Embedder:
        return self.encoder.make_embedder(
            pool=self.pool if pool else None,
            layers=self.layers,
            keep_residues=residues,
            max_tokens=self.options.max_tokens,
            max_rows=self.options.max_rows,
            devices=self.options.devices,
        )

    def _whole(self, found, todo, missing, too_large) -> Iterator[tuple]:
        """(protein, embedding) of proteins that go through the model in one piece."""
        runner = self._embedder(
            pool="protein" in self.paths, residues="residues" in self.paths
        )
        buckets = runner.buckets(found.lengths[todo])
        computed = real = 0

        def work():
            nonlocal computed, real
            for window in _windows(found.proteins(todo)):
                # The same sequence under several ids is computed once.
                alike: dict[bytes, list[inputs.Protein]] = {}
                for protein in window:
                    alike.setdefault(protein.residues, []).append(protein)
                groups = list(alike.values())
                for item in runner.work(list(alike), buckets, tag=groups):
                    # Planned with all of the window, computed only where missing.
                    if any(
                        missing[protein.number]
                        for i in item.batch.members
                        for protein in groups[i]
                    ):
                        computed += item.batch.rows * item.batch.length
                        real += sum(map(len, item.sequences))
                        yield item

        for item, member, embedding in runner.run(work(), too_large):
            for protein in item.tag[member]:
                if missing[protein.number]:
                    yield protein, embedding
        self.report.padding = 1.0 - real / computed if computed else 0.0

    def _in_pieces(self, found, todo, missing) -> Iterator[tuple]:
        """(protein, embedding) of those that are cut, one protein at a time."""
        limit = self.options.max_length
        overlap = self.options.chunk_overlap
        overlap = limit // 4 if overlap is None else overlap
        runner = self._embedder(pool=False, residues=True)
        for protein in found.proteins(todo & missing):
            pieces = chunks.cut(len(protein.residues), limit, overlap)
            if self.options.long == "truncate":
                pieces = [(0, limit)]
            sequences = [protein.residues[start:stop] for start, stop in pieces]
            work = runner.work(sequences, runner.buckets([limit]))
            hidden: list[Any] = [None] * len(pieces)
            for _, member, embedding in runner.run(work):
                hidden[member] = np.array(embedding.residues, np.float32)
            whole = chunks.stitch(pieces, hidden)
            pooled = pooling.pool_protein(whole, self.pool) if self.pool else None
            yield protein, embedder.Embedding(whole, pooled)

    def _stored(self, protein, embedding) -> dict[str, np.ndarray]:
        arrays = {}
        for kind in self.paths:
            wide = embedding.residues if kind == "residues" else embedding.protein
            with np.errstate(over="ignore"):
                array = np.asarray(wide).astype(self.dtypes[kind])
            if not np.isfinite(array).all():
                wide = np.asarray(wide, np.float32)
                if not np.isfinite(wide).all():
                    raise ValueError(
                        f"The model gave values that are not finite for "
                        f"{protein.name!r}. Are its weights sound?"
                    )
                raise ValueError(
                    f"{protein.name!r}: a value of {np.abs(wide).max():.4g} does not "
                    f"fit {self.dtypes[kind]}. Use --output-dtype float32."
                )
            arrays[kind] = array
        return arrays

    # ----------------------------------------------------------------------- merge

    def _needs_merge(self, known: reuse.Known, found: inputs.Inputs) -> bool:
        """False if the output as it is holds all, and nothing was computed."""
        chosen = found.fates == inputs.EMBED
        return not bool(known.in_output[chosen].all() and known.has_output)

    def _merge(self, found, entries, known: reuse.Known, parts: shards.Parts) -> None:
        places = parts.find(entries)
        metadata = self._metadata(found)
        # Before the outputs: killed in between, they are known for what they are.
        self._write_provenance(found, complete=False)
        for kind, path in self.paths.items():
            temporary = parts.folder / f"merged.{kind}{path.suffix}"
            writers.remove(temporary)
            writer = writers.create(temporary, metadata[kind])
            try:
                for protein in found.proteins():
                    place = places[protein.number]
                    if place[0] >= 0:
                        shape = (*self._lead(), -1, self.encoder.d_model)
                        array = parts.arrays(place, kind).reshape(shape)
                        if kind == "protein":
                            array = array[..., 0, :]
                    else:
                        array = known.array(protein, kind).astype(self.dtypes[kind])
                    writer.add(_entry(protein, array))
                for entry in known.others(kind, entries):
                    self.report.kept += kind == next(iter(self.paths))
                    writer.add(entry)
            finally:
                writer.close()
            if path.is_dir():
                # A folder cannot be replaced at once; the shards are still there.
                os.replace(path, parts.folder / f"before.{kind}")
            os.replace(temporary, path)
        shards.sync_folder(self.output.parent)
        self._write_provenance(found, complete=True)

    def _write_provenance(self, found: inputs.Inputs, *, complete: bool) -> None:
        content = dict(self._provenance(found)) | {"complete": complete}
        for path in self.paths.values():
            shards.write_synced(
                path.with_name(path.name + ".json"), writers.to_json(content)
            )

    def _metadata(self, found) -> dict[str, dict[str, Any]]:
        """Root attributes by kind: nothing in them depends on when or where it ran."""
        import prottrans_jax

        common = {
            "model_name": self.encoder.name,
            "model_revision": self.encoder.revision,
            "weights_fingerprint": self.encoder.fingerprint,
            "layer": str(self.layers),
            "dtype_compute": np.dtype(self.encoder.config.dtype).name,
            "prottrans_version": prottrans_jax.__version__,
            reuse.IDENTITY: json.dumps(self.identity, sort_keys=True),
        }
        chosen = int((found.fates == inputs.EMBED).sum())
        return {
            kind: common
            | {
                "pooling": self.pool if kind == "protein" else "none",
                "n_proteins": chosen,
            }
            for kind in self.paths
        }

    def _provenance(self, found) -> Mapping[str, Any]:
        import jax

        import prottrans_jax

        return {
            "run": self.identity,
            "options": {
                name: value if isinstance(value, int | None) else str(value)
                for name, value in dataclasses.asdict(
                    dataclasses.replace(self.options, devices=None)
                ).items()
            },
            "model_source": str(self.encoder.source),
            "model_revision": self.encoder.revision,
            "input": {"path": self.source, "sha256": found.sha256},
            "proteins": int((found.fates == inputs.EMBED).sum()),
            "skipped": len(found.skipped),
            "residues_cleaned": {"gaps": found.num_gaps, "stops": found.num_stops},
            "device": jax.devices()[0].device_kind,
            "versions": {
                "prottrans_jax": prottrans_jax.__version__,
                "jax": jax.__version__,
                "numpy": np.__version__,
            },
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }

    def _write_skipped(self, skipped: Sequence[inputs.Skipped]) -> None:
        path = self.output.with_name(self.output.name + ".skipped.tsv")
        if not skipped:
            path.unlink(missing_ok=True)
            return
        rows = [("id", "line", "reason", "detail")]
        rows += [(s.name, str(s.line), s.reason, s.detail) for s in skipped]
        text = "".join("\t".join(row) + "\n" for row in rows)
        shards.write_synced(path, text.encode())


_CUTS = ("chunk", "truncate")


class _Committer:
    """Collects items and commits them in a thread, at most one shard behind."""

    def __init__(self, parts: shards.Parts):
        self._parts = parts
        self._items: list[shards.Item] = []
        self._bytes = 0
        self._last = time.monotonic()
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "commit_shards")
        self._pending: concurrent.futures.Future | None = None

    def add(self, item: shards.Item) -> None:
        self._items.append(item)
        self._bytes += sum(array.nbytes for array in item.arrays.values())
        due = time.monotonic() - self._last > _COMMIT_SECONDS
        if due or self._bytes >= _COMMIT_BYTES:
            self._submit()

    def _submit(self) -> None:
        self._wait()
        items, self._items, self._bytes = self._items, [], 0
        self._last = time.monotonic()
        if items:
            self._pending = self._pool.submit(self._parts.commit, items)

    def _wait(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def __enter__(self) -> "_Committer":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            # Stopped by a signal or an error: what is done is kept all the same.
            if not isinstance(error, OSError):
                self._submit()
            self._wait()
        finally:
            self._pool.shutdown()


def _windows(proteins) -> Iterator[list[inputs.Protein]]:
    window: list[inputs.Protein] = []
    for protein in proteins:
        window.append(protein)
        if len(window) == _WINDOW:
            yield window
            window = []
    if window:
        yield window


def _entry(protein: inputs.Protein, array: np.ndarray) -> writers.Entry:
    return writers.Entry(
        protein.key,
        protein.name,
        protein.description,
        len(protein.residues),
        keys.digest(protein.residues),
        array,
    )


def _is_disk_full(error: OSError) -> bool:
    # HDF5 puts the number into its text.
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or "errno = 28" in str(error)

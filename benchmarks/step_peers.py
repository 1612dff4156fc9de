"""Training steps of one family: ours, and Hugging Face's in torch at the same sizes.

A family has our objective, and a torch model with a function that computes its loss on
one of our batches.
"""

import argparse
import os
from typing import Any

import numpy as np

# T5 has LAYERS layers in the encoder and as many in the decoder.
SIZES = {"d_model": 512, "d_ff": 2048, "num_heads": 8, "head_dim": 64}
LAYERS = 6
MAX_LENGTH = 512
D_EMBED = 128
GENERATOR = {"d_model": 128, "d_ff": 512, "num_heads": 2, "head_dim": 64}
TASKS = {
    "t5": "iid_denoise",
    "bert": "masked_lm",
    "albert": "ngram_masked_lm",
    "electra": "masked_lm",
    "xlnet": "permutation_lm",
}


def our_objective(family: str, dropout_rate: float, compute: Any) -> Any:
    """Our objective and model of a family, computed as `compute` says."""
    from prottrans_jax.models import albert, bert, electra, t5, xlnet
    from prottrans_jax.objectives import (
        denoising,
        masked_lm,
        permutation_lm,
        replaced_token_detection,
    )
    from prottrans_jax.proteins import vocabulary

    if family == "t5":
        config = t5.T5Config(
            vocab_size=vocabulary.PROT_T5.size,
            num_layers=LAYERS,
            num_decoder_layers=LAYERS,
            dropout_rate=dropout_rate,
            **SIZES,
        )
        return denoising.Denoising(t5.T5(config, compute))
    common: dict[str, Any] = {"dropout_rate": dropout_rate, "num_layers": LAYERS}
    common |= SIZES
    if family == "xlnet":
        size = vocabulary.PROT_XLNET.size
        config = xlnet.XLNetConfig(vocab_size=size, **common)
        model = xlnet.XLNet(config, compute)
        return permutation_lm.PermutationLM(model)
    common |= {
        "max_length": MAX_LENGTH,
        "attention_dropout_rate": dropout_rate,
        "vocab_size": vocabulary.PROT_BERT.size,
    }
    if family == "bert":
        return masked_lm.MaskedLM(bert.Bert(bert.BertConfig(**common), compute))
    if family == "albert":
        common["vocab_size"] = vocabulary.PROT_ALBERT.size
        config = albert.AlbertConfig(d_embed=D_EMBED, **common)
        return masked_lm.MaskedLM(albert.Albert(config, compute))
    generator = {f"generator_{name}": size for name, size in GENERATOR.items()}
    config = electra.ElectraConfig(generator_num_layers=LAYERS, **generator, **common)
    model = electra.Electra(config, compute)
    return replaced_token_detection.ReplacedTokenDetection(model)


class Ours:
    """The trainer's jitted step, with donated state, microbatches and metrics."""

    def __init__(self, options: argparse.Namespace):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax

        from prottrans_jax import partitioning
        from prottrans_jax.layers import compute
        from prottrans_jax.optimizers import algorithms
        from prottrans_jax.training import train_state, train_step

        objective = our_objective(
            options.family,
            options.dropout,
            compute.ComputeConfig(
                dtype="bfloat16" if options.precision == "bf16" else "float32",
                scan_layers=options.scan_layers,
            ),
        )
        kind = algorithms.Adafactor if options.family == "t5" else algorithms.AdamW
        optimizer = kind(learning_rate=1e-3)
        self.partitioner = partitioning.Partitioner()
        self.rows = options.rows
        self.features = objective.features
        dtypes = {"loss_weights": np.float32, "decoder_loss_weights": np.float32}
        dtypes["order_weights"] = np.float32
        shapes = {
            name: jax.ShapeDtypeStruct(
                (options.rows, MAX_LENGTH), dtypes.get(name, np.int32)
            )
            for name in objective.features
        }
        plan = train_state.plan(objective, optimizer, self.partitioner, shapes)
        self.state = train_state.initialize(plan, seed=0)
        self.run = train_step.make_train_step(
            plan,
            seed=0,
            num_microbatches=options.microbatches,
        )
        self.about = f"jax {jax.__version__}"

    def step(self, features: dict[str, np.ndarray]) -> float:
        """Runs one step; returns its loss."""
        features = {name: features[name] for name in self.features}
        batch = self.partitioner.put_batch(features, self.rows)
        with self.partitioner.scope():
            self.state, outputs = self.run(self.state, batch)
        total, weight = outputs["sums"]["loss"]
        return float(total) / float(weight)


class Torch:
    """transformers' model of the family, trained in the usual way."""

    def __init__(self, options: argparse.Namespace):
        import torch
        import transformers
        from transformers import optimization

        self.torch = torch
        self.bf16 = options.precision == "bf16"
        self.family = options.family
        torch.manual_seed(0)
        self.models = self._models(transformers, options)
        for model in self.models:
            model.train()
        parameters = {id(p): p for model in self.models for p in model.parameters()}
        if options.family == "t5":
            self.optimizer = optimization.Adafactor(
                parameters.values(), lr=1e-3, relative_step=False, warmup_init=False
            )
        else:
            self.optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)
        if options.compile:
            self.models = [torch.compile(model) for model in self.models]
        self.about = (
            f"torch {torch.__version__}, transformers {transformers.__version__}"
        )

    def _models(self, transformers: Any, options: argparse.Namespace) -> list[Any]:
        from prottrans_jax.proteins import vocabulary

        def make(kind: Any, config: Any) -> Any:
            return kind._from_config(config, attn_implementation=options.attention)

        if self.family == "t5":
            config = transformers.T5Config(
                vocab_size=vocabulary.PROT_T5.size,
                d_model=SIZES["d_model"],
                d_kv=SIZES["head_dim"],
                d_ff=SIZES["d_ff"],
                num_layers=LAYERS,
                num_decoder_layers=LAYERS,
                num_heads=SIZES["num_heads"],
                dropout_rate=options.dropout,
                decoder_start_token_id=0,
                use_cache=False,
            )
            return [make(transformers.T5ForConditionalGeneration, config)]
        if self.family == "xlnet":
            config = transformers.XLNetConfig(
                vocab_size=vocabulary.PROT_XLNET.size,
                d_model=SIZES["d_model"],
                d_inner=SIZES["d_ff"],
                n_layer=LAYERS,
                n_head=SIZES["num_heads"],
                dropout=options.dropout,
            )
            return [transformers.XLNetLMHeadModel(config)]  # Does not support SDPA.

        def encoder(kind: Any, sizes: dict[str, int], **more: Any) -> Any:
            return kind(
                hidden_size=sizes["d_model"],
                intermediate_size=sizes["d_ff"],
                num_hidden_layers=LAYERS,
                num_attention_heads=sizes["num_heads"],
                max_position_embeddings=MAX_LENGTH,
                hidden_dropout_prob=options.dropout,
                attention_probs_dropout_prob=options.dropout,
                **more,
            )

        bert_size = vocabulary.PROT_BERT.size
        if self.family == "bert":
            config = encoder(transformers.BertConfig, SIZES, vocab_size=bert_size)
            return [make(transformers.BertForMaskedLM, config)]
        if self.family == "albert":
            config = encoder(
                transformers.AlbertConfig,
                SIZES,
                vocab_size=vocabulary.PROT_ALBERT.size,
                embedding_size=D_EMBED,
            )
            return [make(transformers.AlbertForMaskedLM, config)]
        widths = {"vocab_size": bert_size, "embedding_size": SIZES["d_model"]}
        generator = make(
            transformers.ElectraForMaskedLM,
            encoder(transformers.ElectraConfig, GENERATOR, **widths),
        )
        discriminator = make(
            transformers.ElectraForPreTraining,
            encoder(transformers.ElectraConfig, SIZES, **widths),
        )
        discriminator.electra.embeddings = generator.electra.embeddings
        return [generator, discriminator]

    def _loss(self, batch: dict[str, np.ndarray]) -> Any:
        torch = self.torch

        def ids(name: str) -> Any:
            return torch.from_numpy(batch[name].astype(np.int64))

        if self.family == "t5":
            labels = np.where(
                batch["decoder_segment_ids"] > 0, batch["decoder_target_tokens"], -100
            )
            return self.models[0](
                input_ids=ids("encoder_input_tokens"),
                attention_mask=ids("encoder_segment_ids"),
                decoder_input_ids=ids("decoder_input_tokens"),
                labels=torch.from_numpy(labels.astype(np.int64)),
            ).loss
        mask = torch.from_numpy((batch["segment_ids"] > 0).astype(np.int64))
        if self.family == "xlnet":
            return self._xlnet_loss(batch, ids, mask)
        labels = np.where(batch["loss_weights"] > 0, batch["target_tokens"], -100)
        labels = torch.from_numpy(labels.astype(np.int64))
        out = self.models[0](
            input_ids=ids("input_tokens"), attention_mask=mask, labels=labels
        )
        if self.family != "electra":
            return out.loss
        targets = ids("target_tokens")
        with torch.no_grad():
            hidden = labels != -100
            drawn = torch.distributions.Categorical(logits=out.logits[hidden].float())
            tokens = targets.clone()
            tokens[hidden] = drawn.sample()
        replaced = self.models[1](
            input_ids=tokens,
            attention_mask=mask,
            labels=(tokens != targets).long(),
        )
        return out.loss + 50.0 * replaced.loss

    def _xlnet_loss(self, batch: dict[str, np.ndarray], ids: Any, mask: Any) -> Any:
        torch = self.torch
        ranks = batch["factorization_ranks"]
        predicted = batch["loss_weights"] > 0
        # perm_mask[i, j] = 1: i does not see j.
        hidden = (ranks[:, None, :] >= 0) & (ranks[:, None, :] >= ranks[:, :, None])
        most = int(predicted.sum(1).max())
        mapping = np.zeros((len(ranks), most, ranks.shape[1]), np.float32)
        labels = np.full((len(ranks), most), -100, np.int64)
        for row, places in enumerate(predicted):
            (at,) = places.nonzero()
            mapping[row, np.arange(len(at)), at] = 1.0
            labels[row, : len(at)] = batch["target_tokens"][row, at]
        return self.models[0](
            input_ids=ids("input_tokens"),
            attention_mask=mask,
            perm_mask=torch.from_numpy(hidden.astype(np.float32)),
            target_mapping=torch.from_numpy(mapping),
            labels=torch.from_numpy(labels),
        ).loss

    def step(self, features: dict[str, np.ndarray]) -> float:
        """Runs one step; returns its loss."""
        torch = self.torch
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self._loss(features)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

"""The host half of each pre-training objective: selects inputs and targets.

`streams` holds the protocol; `iid_noise` and `span_corruption` are T5's, `masking` and
`framing` BERT's, ALBERT's and ELECTRA's, `permuted` XLNet's, `causal` Transformer-XL's.
`position_kinds` is shared with the device half in `objectives/`.

NumPy only; may import `data.rows.random_bits` and proteins.
"""

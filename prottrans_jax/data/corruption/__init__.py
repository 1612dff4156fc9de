"""The host half of each pre-training objective: what is hidden and what is predicted.

`streams` holds the contract; `iid_noise` and `span_corruption` are T5's, `masking` and
`framing` BERT's, ALBERT's and ELECTRA's, `permuted` XLNet's, `causal` Transformer-XL's.

NumPy only; may import `data.rows.random_bits` and proteins.
"""

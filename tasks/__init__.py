"""SeqIO tasks of the library; importing this package registers them."""

"""Adapters to SeqIO.

record_source         prepared folders as a data source
byte_vocabulary       vocabularies
preprocessors         tokenize, cut to the row, corrupt
feature_converters    from `seqio.get_dataset` to the features of `RowLoader`
task_names            names of the registered tasks, without importing SeqIO
t5x_batches           the rows of `RowLoader` for T5X's training loop
"""

"""Rows of a batch, computed from the seed, the row number and the record lengths.

For a given data set and given settings. Lanes also depend on the batch size.

permutation, order           which record comes when
packing, row_blocks, lanes   which pieces share a row, or a lane for memories
task_components              a SeqIO task as records, corruption and rates
assembly, loader             rows as arrays; `loader.RowLoader` feeds the trainer
loader_states                the saved state of a loader
earlier_states               reads such states of earlier versions
"""

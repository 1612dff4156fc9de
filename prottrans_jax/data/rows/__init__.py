"""Rows of a batch: a pure function of (seed, row number).

permutation, order           which record comes when
packing, row_blocks, lanes   which pieces share a row, or a lane for memories
task_components              a SeqIO task as records, corruption and rates
assembly, loader             rows as arrays; `loader.RowLoader` feeds the trainer
loader_states                the saved state of a loader
"""

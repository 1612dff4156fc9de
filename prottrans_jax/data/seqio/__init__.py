"""Adapters to SeqIO: sources, vocabularies, preprocessors, feature converters."""

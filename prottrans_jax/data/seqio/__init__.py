"""What SeqIO sees: sources, vocabularies, preprocessors and feature converters."""

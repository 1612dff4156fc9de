"""What surrounds a training step: files that a run writes about itself."""

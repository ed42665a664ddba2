"""The parts of a rehearsal: copies of the run, batches of its data, trials of its metrics and checkpoints."""

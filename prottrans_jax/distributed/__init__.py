"""How the processes of one run start and which devices each takes; imports jax only."""

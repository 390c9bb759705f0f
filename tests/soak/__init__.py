"""Long proofs: kills, memory, a state machine, a model checker."""

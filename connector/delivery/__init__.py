"""How it is written: dedupe, positions, the outbox and the transactional writer."""

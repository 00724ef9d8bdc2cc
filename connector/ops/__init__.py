"""How it is watched: metrics, logs, health and the ops port."""

"""Who wants to know what happened: metrics, logs, traces."""

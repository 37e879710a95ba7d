"""The demo: the whole line on this machine, with a real broker, real processes and a real trained model."""

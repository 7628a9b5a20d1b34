"""The reinforcement learning stage."""

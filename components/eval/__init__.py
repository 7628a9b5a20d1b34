"""The evaluation stages: evaluate a policy, decide whether RL may start, report and promote."""

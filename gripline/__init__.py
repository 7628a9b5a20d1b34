"""What the stages of gripline share: configuration, types, policies, environments, rollouts, algorithms, tracking."""

__version__ = "0.1.0"

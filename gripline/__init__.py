"""What the stages of gripline share: configuration, types, policies, environments, rollouts, algorithms, tracking."""

"""All that touches a Kubernetes cluster: placements, the RayJob of a stage, its launcher and its driver."""

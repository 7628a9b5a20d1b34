"""The graph, and the ways to run it: on this machine or on a Kubeflow Pipelines server."""

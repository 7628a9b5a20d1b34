"""The demonstrations stage: scripted experts show the tasks."""

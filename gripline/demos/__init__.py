"""Demonstrations as data: what the experts did, frame by frame, with the statistics that a policy is built on."""

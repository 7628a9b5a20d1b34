"""The stages, one folder each; a stage never imports another."""
